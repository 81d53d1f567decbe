"""Submit the mark stage.

ray job submit --working-dir . -- python jobs/mark.py --config pipeline.yaml --set report.marked=3
"""

from stage_job import main

if __name__ == "__main__":
    main("mark")
