"""Submit the sketch stage.

ray job submit --working-dir . -- python jobs/sketch.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("sketch")
