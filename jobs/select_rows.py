"""Submit the select stage. (A script called select.py would stand before Python's own module of that name.)

ray job submit --working-dir . -- python jobs/select_rows.py --config pipeline.yaml --set select.fraction=0.1
"""

from stage_job import main

if __name__ == "__main__":
    main("select")
