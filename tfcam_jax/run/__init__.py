"""What one run keeps on the disk, and how it is stopped and continued."""
