"""Submit the attribute stage.

ray job submit --working-dir . -- python jobs/attribute.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main("attribute")
