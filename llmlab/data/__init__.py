"""Floor 1: what models are trained on. source -> rows -> canonical shape -> template -> tokens -> packed sequences."""
