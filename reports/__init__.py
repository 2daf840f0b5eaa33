"""Communication volume: tables and comparisons made from ledgers. Imports floors 0 and 1."""
