"""A run as others see it: numbers for Prometheus, and a page for a person."""
