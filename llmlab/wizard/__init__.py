"""Floor 3: asking. Menu and forms, made from the config fields and the table of stages. No torch."""
