"""What is measured of a trained run: samples, calibration, detection, robustness, landscapes."""
