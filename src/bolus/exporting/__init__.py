"""An encoder in formats that other programs open, each compared with bolus before it stands."""
