"""The one-idea table: a file per column, each cell's settings beside what it does.

energy  +  where a chain starts  +  how it steps  +  what the loss is  +  how weights are updated
networks, energy   starts              samplers         losses               updates
"""
