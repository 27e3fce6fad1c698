"""What other trainers call our keys: open_clip's, timm's and DINO's options, transformers'
TrainingArguments, and words of Lightning, Hydra and big_vision. Standard library alone.

A line has their names and what is typed here. `{}` is the value; a capital word stands for one that
cannot be taken over as it is; `*.name` is the recipe's first key that ends so; behind `|` stands
why, alone where nothing here does the same. `name=value` is of that value. Names are in lower case,
with `_` for `-`.
"""

_THEIRS = {
    # how long, and how much at once
    "epochs num_epochs n_epochs num_train_epochs max_epochs total_epochs epoch nb_epochs": (
        "epochs={}"
    ),
    "steps max_steps num_steps total_steps train_steps training_steps iterations iters max_iters "
    "num_iters max_iter": "steps={}",
    "batch_size bs b batch train_batch_size global_batch_size total_batch_size input.batch_size "
    "batchsize global_bs": "global_batch={} | of all devices together",
    "per_device_train_batch_size per_gpu_train_batch_size batch_size_per_gpu micro_batch_size "
    "local_batch_size": "global_batch={} | of all devices together: so many times their number",
    "per_device_eval_batch_size per_gpu_eval_batch_size validation_batch_size eval_batch_size vb": (
        "'vtx evaluate RUN' | it chooses its batches itself: leave it out"
    ),
    "gradient_accumulation_steps accum_freq accum_steps grad_accum grad_accum_steps update_freq "
    "accumulate_grad_batches accum_iter grad_accumulation_steps": (
        "system.micro_batch=SLOTS | global_batch stays, and so many slots are computed at once"
    ),
    # rates
    "lr learning_rate base_lr max_lr peak_lr lr_base init_lr": "optim.lr={}",
    "blr base_learning_rate lr_per_sample": "optim.lr=RATE | the peak, which no batch scales",
    "min_lr lr_end lr_min eta_min end_lr": "schedule.floor=SHARE | a share of optim.lr",
    "warmup warmup_steps num_warmup_steps warmup_iters warmup_iterations lr_warmup_steps "
    "linear_warmup_steps": "schedule.warmup={}",
    "warmup_epochs": "schedule.warmup=STEPS | counted in steps",
    "warmup_ratio warmup_percent": "schedule.warmup=STEPS | a number of steps",
    "sched scheduler lr_scheduler lr_scheduler_type lr_schedule lr_sched decay_type lr_decay_type "
    "schedule_type": "schedule.kind={}",
    "cooldown cooldown_steps epochs_cooldown cooldown_epochs": "schedule.cooldown=STEPS | in steps",
    "wd weight_decay l2 decay_weight": "optim.decay={}",
    "weight_decay_end wd_end": "optim.decay_end={}",
    "opt optimizer optim_type optimizer_type optimizer_name optax_name optim_name solver": (
        "optim.kind={}"
    ),
    "beta1 adam_beta1 adam_b1": "optim.betas={},0.999",
    "beta2 adam_beta2 adam_b2": "optim.betas=0.9,{}",
    "betas opt_betas adam_betas": "optim.betas={}",
    "momentum sgd_momentum": "optim.betas={},0.999 | SGD's momentum is the first of them",
    "eps opt_eps adam_epsilon epsilon adam_eps": "optim.eps={}",
    "clip_grad grad_clip grad_clip_norm max_grad_norm clip_grad_norm gradient_clip_val "
    "gradient_clipping max_norm": "optim.clip={}",
    "adafactor": "optim.kind=adafactor",
    "ema model_ema use_ema ema_decay model_ema_decay ema_rate ema_momentum weight_ema": (
        "optim.average={}"
    ),
    "layer_decay llrd layerwise_decay layer_wise_decay layerwise_lr_decay layer_lr_decay "
    "lr_layer_decay layer_wise_lr_decay": (
        "| no rate here falls with a block's depth: leave it out, or write an optimizer of "
        "your own (optim.kind=module:Class)"
    ),
    # data
    "train_data data data_dir data_path dataset_dir train_dir train_path dataset data_root "
    "train_dataset dataset_name train_file root train_split": "data.shards={}",
    "val_data val_dir val_path imagenet_val imagenet_v2 val_dataset eval_data validation_file "
    "validation_data valid_data val_split": "data.val_shards={}",
    "train_num_samples epoch_size": "epochs=N | the index counts the samples: leave it out",
    "train_val_split val_ratio validation_split": "data.hold_out={}",
    "csv_caption_key caption_key caption_column text_column": "data.caption={}",
    "csv_img_key image_key image_column": "'vtx data build' | it takes --image COLUMN",
    "label_key label_column class_key": "data.label={}",
    "tokenizer tokenizer_name tokenizer_file": "data.tokenizer={}",
    "hflip flip random_flip": "data.flip={}",
    "crop_scale scale aug_scale": "data.crop={}",
    "crop_ratio aspect_ratio": "data.ratio={}",
    "crop_pct": "data.centre={}",
    "mixup mixup_alpha": "data.augment.mixup={}",
    "cutmix cutmix_alpha": "data.augment.cutmix={}",
    "mixup_prob": "data.augment.mix_share={}",
    "mixup_switch_prob": "data.augment.cutmix_share={}",
    "reprob random_erasing random_erase erase": "data.augment.erase={}",
    "aa auto_augment randaugment rand_augment": (
        "data.augment.randaug_layers=2 data.augment.randaug_magnitude=9"
    ),
    "repeated_aug aug_repeats": "data.augment.repeats=3",
    "color_jitter jitter": "*.jitter={}",
    # the network and the loss
    "model arch model_name model_name_or_path backbone architecture net": (
        "'vtx train RECIPE' | the recipe is the model, and 'vtx show recipes' lists them"
    ),
    "drop_path drop_path_rate stochastic_depth": "*.drop_path={}",
    "drop dropout drop_rate hidden_dropout_prob": "*.dropout={}",
    "smoothing label_smoothing label_smoothing_factor": "*.smoothing={}",
    "img_size image_size input_size force_image_size resolution res crop_size": "*.resolution={}",
    "num_classes nb_classes n_classes num_labels": "*.classes={}",
    "patch_size": "*.patch={}",
    "context_length max_length max_seq_length force_context_length": "*.context={}",
    "embed_dim hidden_size": "*.width={}",
    "num_layers layers num_hidden_layers": "*.depth={}",
    "num_heads num_attention_heads": "*.heads={}",
    "out_dim": "*.prototypes={}",
    "local_crops_number n_local_crops": "objective.crops.locals={}",
    "local_crops_scale": "objective.crops.local_scale={}",
    "global_crops_scale": "objective.crops.global_scale={}",
    "momentum_teacher": "objective.momentum={}",
    "teacher_temp": "objective.teacher_temperature={}",
    "warmup_teacher_temp": "objective.warm_temperature={}",
    "warmup_teacher_temp_epochs": "objective.warm_steps=STEPS | counted in steps",
    "freeze_last_layer": "objective.frozen=STEPS | counted in steps",
    "distill_model teacher_model teacher_path distill_pretrained teacher": (
        "objective.teacher_from={}"
    ),
    "distillation_type": "objective.kind={}",
    "siglip": "'vtx train siglip_vit_b16' | a recipe of its own",
    "temperature logit_scale": "*.temperature={}",
    # where values come from, and where they go
    "pretrained finetune initial_checkpoint load_from init_from init_checkpoint from_pretrained "
    "pretrained_weights weights": "init.from={} | a run folder, or one of weights on this disk",
    "resume resume_from_checkpoint auto_resume resume_from ckpt_path continue": (
        "--run FOLDER | the same command on the same folder goes on by itself"
    ),
    "output output_dir out out_dir logs logdir log_dir save_dir workdir work_dir save_path "
    "run_dir run_folder folder checkpoint_dir default_root_dir dir outdir experiment_dir": (
        "--run {}"
    ),
    "name experiment run_name exp_name experiment_name": "--run runs/{}",
    "save_steps checkpoint_every save_interval save_every ckpt_steps every_n_train_steps "
    "checkpoint_interval ckpt_every": "checkpoint.every={}",
    "save_frequency saveckp_freq save_freq save_strategy save_most_recent checkpoint_hist_freq": (
        "checkpoint.every=STEPS | in steps"
    ),
    "save_total_limit checkpoint_hist keep_last max_checkpoints": "checkpoint.keep={}",
    "metric_for_best_model eval_metric monitor load_best_model_at_end": (
        "checkpoint.best=zero_shot/top1 | EVALUATOR/NUMBER"
    ),
    "patience early_stopping_patience early_stop_patience": (
        "stop.number=EVALUATOR/NUMBER stop.patience={}"
    ),
    "early_stopping early_stop": "stop.number=EVALUATOR/NUMBER stop.patience=5",
    "eval_steps val_check_interval eval_every validation_steps": "evaluate.0.every={}",
    "val_frequency zeroshot_frequency eval_strategy evaluation_strategy val_interval "
    "check_val_every_n_epoch": "evaluate.0.every=STEPS | in steps",
    "report_to tensorboard logger log_with wandb=false use_wandb=false log_wandb=false": (
        "'vtx watch RUN' | metrics.jsonl and TensorBoard's files are always written: leave it out"
    ),
    "wandb use_wandb log_wandb report_to=wandb logger=wandb log_with=wandb logger=wandblogger": (
        "log.to=wandb"
    ),
    "mlflow report_to=mlflow logger=mlflow log_with=mlflow logger=mlflogger": "log.to=mlflow",
    "log_interval logging_steps log_every_n_steps log_every print_freq log_steps": (
        "'vtx watch RUN' | every step is written: leave it out"
    ),
    # how it is computed
    "precision amp_dtype dtype torch_dtype mixed_precision": "system.precision={}",
    "fp16 use_fp16 half amp native_amp": "system.precision=fp16",
    "bf16 bfloat16": "system.precision=bf16",
    "fp32 float32 no_amp": "system.precision=fp32",
    "workers num_workers j dataloader_num_workers num_data_workers n_workers nworkers": (
        "system.workers={}"
    ),
    "device accelerator": "system.device={}",
    "use_cpu cpu no_cuda": "system.device=cpu",
    "gpus gpu devices num_gpus nproc_per_node num_processes world_size n_gpus ngpus world nproc": (
        "system.world={}"
    ),
    "num_nodes nnodes": "'vtx submit RECIPE' | it takes the machines of a cluster",
    "strategy distributed_strategy parallel_strategy": "system.strategy={}",
    "fsdp use_fsdp": "system.strategy=fsdp",
    "ddp distributed data_parallel": "system.strategy=ddp",
    "deepspeed zero zero_stage": "system.strategy=zero2",
    "tensor_parallel tensor_model_parallel_size tp_size": "system.tp={}",
    "grad_checkpointing gradient_checkpointing activation_checkpointing use_checkpoint "
    "enable_checkpointing checkpoint_activations": "system.recompute=full",
    "torchcompile torch_compile compile use_compile": "system.compile=true",
    "local_loss gather_with_grad": (
        "system.contrastive=gather | gradients go through it: leave it out"
    ),
    "sync_bn use_bn_sync sync_batchnorm": (
        "'vtx train RECIPE' | batch norms are over the whole batch: leave it out"
    ),
    "random_seed manual_seed data_seed rng_seed seed_everything": "seed={}",
    "profile profiler use_profiler profiling torch_profiler": "system.profile={}",
    "config cfg config_file config_name config_path recipe recipe_name": (
        "'vtx train RECIPE' | a recipe is a plain word, and keys stand behind it"
    ),
    "local_rank rank dist_url dist_backend master_addr master_port": (
        "system.world=N | the launcher numbers the ranks: leave it out"
    ),
    "do_train do_eval overwrite_output_dir remove_unused_columns pin_mem pin_memory": (
        "'vtx train RECIPE' | there is nothing to say: leave it out"
    ),
    "debug_mode dry_run dryrun fast_dev_run overfit_batches": "--smoke",
}
KEYS = {name: typed for names, typed in _THEIRS.items() for name in names.split()}
VALUED = {name.partition("=")[0] for name in KEYS if "=" in name and not name.endswith("=false")}
FLAGS = frozenset(
    name
    for name, typed in KEYS.items()
    if typed[0] != "|" and name not in VALUED and "{}" not in typed and "FOLDER" not in typed
)

# of a key what others say for a value
VALUES = {
    "system.precision": {
        "bf16": "amp_bf16 amp_bfloat16 bfloat16 pure_bf16 bf16-mixed bf16-true torch.bfloat16",
        "fp16": "amp amp_fp16 float16 half pure_fp16 16 16-mixed torch.float16 amp_float16",
        "fp32": "float32 32 full 32-true no none torch.float32 single tf32",
        "fp64": "float64 64 double",
    },
    "optim.kind": {
        "adamw": "adam adamw_torch adamw_hf adamw_torch_fused fusedadamw fusedadam nadam",
        "sgd": "momentum nesterov sgdm fusedsgd",
        "adafactor": "adafactorbv big_vision.scale_by_adafactor scale_by_adafactor",
    },
    "schedule.kind": {
        "cosine": "cosine_with_restarts cos cosineannealing cosineannealinglr half_cosine",
        "constant": "const constant_with_warmup none",
        "rsqrt": "inverse_sqrt noam invsqrt",
        "linear": "polynomial poly",
    },
    "system.device": {"cuda": "gpu cuda:0 cuda:1 nvidia", "cpu": "host"},
    "system.strategy": {
        "fsdp": "fsdp2 full_shard fully_sharded",
        "ddp": "dp data_parallel distributed",
        "zero1": "deepspeed_stage_1 1",
        "zero2": "deepspeed deepspeed_stage_2 2",
        "zero3": "deepspeed_stage_3 3",
    },
}

# of a key what is meant by words that are no value of it; no word at all is `true`
MEANT = {
    "optim.average": {"0.9999": "true yes on", "0": "false no off none"},
    "system.profile": {"20..25": "true yes on 1 pytorch torch simple advanced"},
}

# of a part of the recipe what is meant by a value for all of it
PARTS = {
    "data": "data.shards={}",
    "optim": "optim.kind={}",
    "schedule": "schedule.kind={}",
    "init": "init.from={}",
    "evaluate": "evaluate.0.name={}",
    "checkpoint": "checkpoint.every={}",
    "system": "system.device={}",
    "guard": "guard.factor={}",
    "stop": "stop.patience={}",
    "data.augment": "data.augment.mixup={}",
    "system.cache": "system.cache.folder={}",
}

COMMANDS = {
    name: command
    for command, names in {
        "train": "fit run pretrain finetune fine-tune resume continue start learn",
        "evaluate": "eval test validate score val zeroshot predict infer inference",
        "show recipes": "ls list recipes",
        "show models": "models model zoo",
        "show keys": "keys options",
        "show": "info config print describe cat",
        "export": "convert save push",
        "sample": "generate draw",
        "submit": "launch sbatch srun ray cluster",
        "watch": "monitor status top tail follow logs",
        "report": "plot plots html tensorboard",
        "doctor": "check env diagnose",
        "checkpoints": "ckpt ckpts prune",
        "data build": "build",
        "data verify": "verify",
        "data inspect": "inspect",
        "data toy": "toy",
        "data index": "index",
    }.items()
    for name in names.split()
}
WHYS = dict.fromkeys(
    ("predict", "infer", "inference"),
    "its numbers; in Python vtx_scale.open_run gives what the network computes",
)
# options of commands that train nothing
OPTIONS = dict.fromkeys(("format", "fmt", "library", "framework", "target"), "to")
CHOICES = {
    name: choice
    for choice, names in {
        "transformers": "huggingface hf hugging_face hf_hub",
        "open_clip": "openclip open-clip clip",
        "timm": "pytorch-image-models",
        "safetensors": "pt pth torch pytorch plain state_dict",
    }.items()
    for name in names.split()
}
