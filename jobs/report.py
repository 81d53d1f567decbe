"""Submit the report stage.

ray job submit --working-dir . -- python jobs/report.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("report")
