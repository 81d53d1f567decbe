"""Submit the sample stage.

ray job submit --working-dir . -- python jobs/sample.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("sample")
