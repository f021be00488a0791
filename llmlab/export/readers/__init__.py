"""Programs of one file each, started as processes of their own: they read an export as other programs do."""
