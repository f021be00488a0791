"""What draws and asks: menu, forms, tables, made from the config fields and the registry of methods.
No torch.
"""
