"""Rate and distortion on a folder of images."""
