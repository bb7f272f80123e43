"""Floor 3: the training loop, optimizer steps, checkpoints and runtime. Names no modality, loss or data set.

From the command to the first optimizer step, each file calling the next
    pipelines/cli.py                 `mmssl pretrain RECIPE`: which function a verb is
    pipelines/pretrain.py            read the recipe, build the run, train, report
    mmssl/recipe/recipe.py           `Recipe.build`: modalities, learner, stream of batches, evaluators
    mmssl/training/run.py            `TrainingConfig.build`: learner on its device, optimizer, beats; `Run.train`: resume, then loop
    mmssl/training/loop.py           batch, rate, step, beats
    mmssl/training/steps/plain.py    forward, backward, finite check, clip, update
"""
