"""Estimates, costs and history → the next action. Pure: no I/O, no clock, no chance but the view's coin and lot."""
