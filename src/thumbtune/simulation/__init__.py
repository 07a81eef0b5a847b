"""A whole service in fast time: a real model, a real store and gateway, simulated people."""
