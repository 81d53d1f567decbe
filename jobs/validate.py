"""Submit the validate stage.

ray job submit --working-dir . -- python jobs/validate.py --config pipeline.yaml --set validate.seeds=3
"""

from stage_job import main

if __name__ == "__main__":
    main("validate")
