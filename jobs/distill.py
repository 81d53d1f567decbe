"""Submit the distill stage.

ray job submit --working-dir . -- python jobs/distill.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("distill")
