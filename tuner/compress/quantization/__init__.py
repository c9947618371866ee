"""From calibration statistics to integers: affine arithmetic, streaming statistics and range estimators."""
