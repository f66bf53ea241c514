"""From training tables to served bytes: packed rows, the serving collection, its files."""
