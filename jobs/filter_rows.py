"""Submit the filter stage.

ray job submit --working-dir . -- python jobs/filter_rows.py --config pipeline.yaml --set filter.fraction=0.03
"""

from stage_job import main

if __name__ == "__main__":
    main("filter")
