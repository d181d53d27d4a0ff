"""Facts of a run to a page that a data-protection officer can read (HTML) and a machine can check (JSON)."""
