"""Distribution on Ray: sessions, tasks, model actors."""
