"""What stands behind model.py: settings, tensors, engines. Only `tensors` and the engines import third parties."""
