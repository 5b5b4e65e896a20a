"""The entropy model: a masked transformer in exact integers, and the engines that run it."""
