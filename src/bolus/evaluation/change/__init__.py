"""Change within a patient."""
