"""The front door: calibrate, look at what could be saved, prune."""
