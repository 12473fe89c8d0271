"""Every knob of a run, as dataclasses without behaviour, and the checks that need nothing but their values."""
