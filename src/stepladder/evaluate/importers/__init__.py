"""Tables of measured outcomes that others published, as outcomes tables: one module for each source."""
