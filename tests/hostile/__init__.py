"""What strangers might send: broken and hostile files, jobs and requests, each with a name and what it has to be told."""
