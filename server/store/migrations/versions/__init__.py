"""One file per revision. A file that was released is never changed."""
