"""Floor 3: the loop and what a run is made of. Knows the learner, and no modality, loss or data set by name.

From the command to the first optimizer step, each file calling the next
    pipelines/cli.py                 `mmssl pretrain RECIPE`: which function a verb is
    pipelines/pretrain.py            read the recipe, build the run, train, report
    mmssl/recipe/recipe.py           `Recipe.build`: modalities, learner, stream of batches, evaluators
    mmssl/training/run.py            `TrainingConfig.build`: learner on its device, optimizer, beats; `Run.train`: resume, then loop
    mmssl/training/loop.py           batch, rate, step, beats
    mmssl/training/steps/plain.py    forward, backward, finite check, clip, update
"""
