"""Files in and results out: images, inspection, JSON of a run."""
