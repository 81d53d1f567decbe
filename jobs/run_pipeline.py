"""Submit all stages.

ray job submit --working-dir . -- python jobs/run_pipeline.py --config pipeline.yaml
"""

from stage_job import main

if __name__ == "__main__":
    main()
