"""Is a claim true? A folder for each question: the script that answers it, what it needs, and the verdict."""
