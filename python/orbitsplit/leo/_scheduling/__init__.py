"""Plans in time: when to compute where, and which contact carries what."""
