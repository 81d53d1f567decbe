"""Submit the evaluate stage.

ray job submit --working-dir . -- python jobs/evaluate.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("evaluate")
