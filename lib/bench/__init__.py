"""How fast an update is (`speed`), against the papers' algorithms written down plainly (`plain`)."""
