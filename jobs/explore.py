"""Submit the explore stage.

ray job submit --working-dir . -- python jobs/explore.py --config pipeline.yaml --set explore.examples=1000
"""

from stage_job import main

if __name__ == "__main__":
    main("explore")
