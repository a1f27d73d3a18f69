"""What a file or folder is: `export.inspect` prints it."""
