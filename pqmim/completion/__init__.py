"""What stands where nothing was sent."""
