"""The paper's whole experiment on a real ladder: its tables beside what is measured. Above train, below the verbs."""
