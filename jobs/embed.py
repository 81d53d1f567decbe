"""Submit the embed stage.

ray job submit --working-dir . -- python jobs/embed.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("embed")
