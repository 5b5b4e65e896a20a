"""What leaves an archive for other programs: pictures, and codes in tars."""
