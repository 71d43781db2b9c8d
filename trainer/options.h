/* options.h - one table of options: the parser, the help, the run header and the checkpoint's attributes are read off it.
 *
 * X(field, TYPE, default, commands, unit, limits, help): `field` becomes the member of en_options and, with dashes, the
 * long option; `commands` says which subcommands take it.  Types: STR text; I64, F64 numbers; FLAG without value; SPAN a
 * stretch: "100" steps, "2e" epochs, "15m", "3h50m", "0" never (span.h).  `limits` is checked and told to the user as it stands:
 * alternatives between '|', each a word or an interval, "[0,1)" being 0 <= value < 1, "[1,inf)i" a whole number with that letter
 * behind it; "" takes anything. */
#ifndef EN_OPTIONS_H
#define EN_OPTIONS_H

#include "kernels/kernels.h"
#include "trainer/span.h"

enum { EN_TRAIN = 1, EN_EVAL = 2, EN_PREDICT = 4, EN_DESCRIBE = 8, EN_SYNTH = 16, EN_DOCTOR = 32, EN_BENCH = 64, EN_PACK = 128,
       EN_EXPORT = 256, EN_IMPORT = 512, EN_CAM = 1024, EN_SEARCH = 2048, EN_SCALING = 4096 };

/* X(bit, name, fewest operands, most (-1: any), usage, summary) */
#define EN_COMMANDS(X)                                                                                                              \
  X(EN_TRAIN,    train,    0,  0, "--data DIR --run DIR", "trains from scratch, or goes on from the newest whole checkpoint of --run") \
  X(EN_SEARCH,   search,   0,  0, "--data DIR --run DIR --budget SPAN", "compound scaling, step 1: trains a grid of depth, width and resolution factors side by side and ranks them") \
  X(EN_EVAL,     eval,     0,  0, "--checkpoint RUN --data DIR", "top-1, top-5 and loss of a checkpoint over a dataset, every image once") \
  X(EN_PREDICT,  predict,  1, -1, "--checkpoint RUN FILE...", "classes and probabilities of image files")                            \
  X(EN_CAM,      cam,      1,  1, "--checkpoint RUN FILE", "where in a picture the network sees a class: its class-activation map over it, as PNG") \
  X(EN_DESCRIBE, describe, 0,  1, "MODEL", "layers with shapes, parameters and multiply-adds; --list shows all models")               \
  X(EN_SYNTH,    synth,    1,  1, "DIR", "makes a small image folder of drawn shapes and textures, to try everything without a download") \
  X(EN_EXPORT,   export,   2,  2, "RUN FILE.safetensors", "weights of a checkpoint for other programs: timm's or torchvision's names, safetensors") \
  X(EN_IMPORT,   import,   2,  2, "FILE.safetensors CHECKPOINT.h5", "weights of other programs as a checkpoint: timm's or torchvision's names, safetensors") \
  X(EN_PACK,     pack,     1,  2, "DIR FILE.h5", "image folder to one HDF5 file with checksums; --verify FILE.h5 checks every byte")          \
  X(EN_BENCH,    bench,    1,  1, "train|passes|data|comm", "the training step on resident data, every pass beside its floor, the input side, or the sums over ranks") \
  X(EN_SCALING,  scaling,  0,  0, "--ranks 1,2,4 | --predict --cluster FILE", "how much faster with more ranks and where the time goes: measured, or predicted for machines that are not there") \
  X(EN_DOCTOR,   doctor,   0,  0, "[--data DIR] [--run DIR]", "what the hosts of a job offer, who differs, and what to do (exit code 1: something would break a job)")

#define EN_OPTIONS(X)                                                                                                               \
  X(model,            STR,  "efficientnet_b0", EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_DOCTOR | EN_IMPORT | EN_SCALING | EN_SEARCH, "name",    "",                        \
    "network; `effnet describe --list` shows them") \
  X(width,            F64,  0,                 EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_IMPORT | EN_SCALING | EN_SEARCH, "factor",  "[0,32]",                     \
    "channel multiplier in place of the model's own (0: its own)") \
  X(depth,            F64,  0,                 EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_IMPORT | EN_SCALING | EN_SEARCH, "factor",  "[0,32]",                     \
    "repeat multiplier in place of the model's own (0: its own)") \
  X(resolution,       F64,  0,                 EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_SCALING | EN_SEARCH, "factor",  "[0,32]",                     \
    "side of the images as a multiple of the model's own, rounded down (0: its own)") \
  X(phi,              F64,  0,                 EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_SCALING,          "number",  "[0,20]",                     \
    "compound coefficient: depth*alpha^phi, width*beta^phi, resolution*gamma^phi") \
  X(alpha,            F64,  1.2,               EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_SCALING,          "factor",  "[1,4]",                      \
    "with --phi: base of the depth") \
  X(beta,             F64,  1.1,               EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_SCALING,          "factor",  "[1,4]",                      \
    "with --phi: base of the width") \
  X(gamma,            F64,  1.15,              EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_SCALING,          "factor",  "[1,4]",                      \
    "with --phi: base of the resolution") \
  X(alphas,           STR,  "1:1.4:0.05",      EN_SEARCH,                                  "list",    "",                           \
    "depths to try: 1,1.1,1.2 or FROM:TO:STEP") \
  X(betas,            STR,  "1:1.4:0.05",      EN_SEARCH,                                  "list",    "",                           \
    "widths to try") \
  X(gammas,           STR,  "1:1.4:0.05",      EN_SEARCH,                                  "list",    "",                           \
    "resolutions to try") \
  X(tolerance,        F64,  0.1,               EN_SEARCH,                                  "number",  "[0,2)",                      \
    "candidates are those whose alpha * beta^2 * gamma^2 is within this of 2") \
  X(budget,           SPAN, "0",               EN_SEARCH,                                  "span",    "[0,inf)",                    \
    "how long each candidate is trained: steps (400), epochs (5e) or time (10m; then the ranking depends on the machine, too, " \
    "and the schedule of the rate must be exponential or constant)") \
  X(candidate_ranks,  I64,  1,                 EN_SEARCH,                                  "ranks",   "[1,inf)",                    \
    "ranks that train one candidate; the others train other ones meanwhile") \
  X(image_size,       I64,  0,                 EN_TRAIN | EN_DESCRIBE | EN_BENCH | EN_IMPORT | EN_SCALING | EN_SEARCH, "pixels",  "0|[32,4096]",                \
    "side of the training images (0: the model's own)") \
  X(classes,          I64,  0,                 EN_DESCRIBE | EN_BENCH | EN_SCALING,                     "classes", "[0,1000000]",                \
    "outputs of the classifier (0: 1000)") \
  X(data,             STR,  "",                EN_TRAIN | EN_EVAL | EN_BENCH | EN_DOCTOR | EN_SEARCH | EN_SCALING, "path",    "",                           \
    "image folder (DIR/train/<class>/..., DIR/val/..., or DIR/<class>/...), packed .h5, or `synthetic`") \
  X(val,              STR,  "",                EN_TRAIN | EN_SEARCH,                       "path",    "",                           \
    "validation images, when not DIR/val of --data") \
  X(run,              STR,  "",                EN_TRAIN | EN_DOCTOR | EN_SEARCH | EN_SCALING,           "path",    "",                           \
    "folder for everything the run writes; goes on from a checkpoint found there") \
  X(recipe,           STR,  "",                EN_TRAIN | EN_SEARCH,                       "name",    "|efficientnet|efficientnetv2|supercomputer|finetune", \
    "settings that belong together, where they are not given one by one; `effnet help recipes` lists them and their sources") \
  X(init,             STR,  "",                EN_TRAIN,                                   "path",    "",                           \
    "fine-tuning: begin with these weights, a checkpoint, a run or safetensors; a new classifier where classes differ") \
  X(freeze,           STR,  "",                EN_TRAIN | EN_DESCRIBE,                     "layer",   "",                           \
    "fine-tuning: leave everything from the stem up to and including this layer as it is: stem, a stage or a block (blocks.2, blocks.2.1; " \
    "ResNet: layer2), or features (all but the classifier)") \
  X(fresh,            FLAG, 0,                 EN_TRAIN,                                   "",        "",                           \
    "refuse to go on from a checkpoint found in --run") \
  X(device,           STR,  "auto",            EN_TRAIN | EN_EVAL | EN_PREDICT | EN_BENCH | EN_DESCRIBE | EN_CAM | EN_SEARCH | EN_SCALING, "name",    "auto|cuda|cpu",              \
    "auto (cuda where every rank has a GPU), cuda or cpu") \
  X(precision,        STR,  "auto",            EN_TRAIN | EN_EVAL | EN_PREDICT | EN_BENCH | EN_DESCRIBE | EN_CAM | EN_SEARCH | EN_SCALING, "type",    "auto|bf16|fp32",             \
    "storage of activations: auto (bf16 on cuda, fp32 on cpu), bf16 or fp32; weights and sums are fp32") \
  X(comm,             STR,  "auto",            EN_TRAIN | EN_BENCH | EN_SEARCH | EN_SCALING,            "name",    "auto|nccl|mpi",              \
    "who sums over GPUs: auto (nccl where it can), nccl, or mpi through host memory (ranks that share a GPU)") \
  X(epochs,           F64,  350,               EN_TRAIN,                                   "epochs",  "(0,inf)",                    \
    "passes over the training images") \
  X(steps,            I64,  0,                 EN_TRAIN | EN_BENCH | EN_SCALING,                        "steps",   "[0,inf)",                    \
    "stop after this many steps in all (0: by --epochs; bench: 10, passes: runs of each, data: rounds, comm: repetitions, 0: by time; scaling: measured ones, 100)") \
  X(global_batch,     I64,  0,                 EN_TRAIN | EN_SCALING | EN_SEARCH,                       "images",  "[0,1000000]",                \
    "images per step over all ranks (0: 32 per rank)") \
  X(micro_batch,      I64,  0,                 EN_TRAIN | EN_BENCH | EN_DESCRIBE | EN_SCALING | EN_SEARCH, "images",  "[0,65536]",                  \
    "images per rank and pass (0: what fits); the rest by accumulation; bench data: how many are measured (0: 256)") \
  X(buckets,          STR,  "25",              EN_TRAIN,                                   "MiB",     "auto|[0,4096]",              \
    "gradients are summed in pieces of about so much, while backward goes on (4 where MPI sums between hosts); 0: at once, " \
    "after it; auto: sizes are tried in the first steps (the same bits over MPI)") \
  X(uneven,           FLAG, 0,                 EN_TRAIN | EN_SEARCH,                       "",        "",                           \
    "allow a global batch that the ranks do not divide (shards differ by one image)") \
  X(lr,               F64,  0.016,             EN_TRAIN | EN_SEARCH,                       "per 256", "[0,inf)",                    \
    "learning rate for 256 images a step, scaled linearly with --global-batch") \
  X(lr_schedule,      STR,  "exponential",     EN_TRAIN | EN_SEARCH,                       "name",    "exponential|cosine|constant|polynomial", \
    "exponential, cosine, constant or polynomial") \
  X(lr_power,         F64,  2,                 EN_TRAIN | EN_SEARCH,                       "number",  "(0,inf)",                    \
    "polynomial: its power") \
  X(lr_end,           F64,  0,                 EN_TRAIN | EN_SEARCH,                       "rate",    "[0,inf)",                    \
    "polynomial: the rate that it ends at, whatever the --global-batch (the reference, with lars: 0.1)") \
  X(lr_decay,         F64,  0.97,              EN_TRAIN | EN_SEARCH,                       "factor",  "(0,1]",                      \
    "exponential: factor at each step of the staircase") \
  X(lr_decay_epochs,  F64,  2.4,               EN_TRAIN | EN_SEARCH,                       "epochs",  "(0,inf)",                    \
    "exponential: length of a step of the staircase") \
  X(warmup_epochs,    F64,  5,                 EN_TRAIN | EN_SEARCH,                       "epochs",  "[0,inf)",                    \
    "linear warm-up from 0") \
  X(optimizer,        STR,  "rmsprop",         EN_TRAIN | EN_SEARCH,                       "name",    "rmsprop|sgd|lars|adamw",     \
    "rmsprop (the paper's, in TensorFlow's form), sgd, lars (for large batches) or adamw; each wants a --lr of its own") \
  X(momentum,         F64,  0.9,               EN_TRAIN | EN_SEARCH,                       "factor",  "[0,1)",                      \
    "rmsprop, sgd, lars: momentum") \
  X(nesterov,         FLAG, 0,                 EN_TRAIN | EN_SEARCH,                       "",        "",                           \
    "sgd, lars: Nesterov's form of it") \
  X(rho,              F64,  0.9,               EN_TRAIN | EN_SEARCH,                       "factor",  "[0,1)",                      \
    "rmsprop: decay of the mean square") \
  X(beta1,            F64,  0.9,               EN_TRAIN | EN_SEARCH,                       "factor",  "[0,1)",                      \
    "adamw: decay of the mean gradient") \
  X(beta2,            F64,  0.999,             EN_TRAIN | EN_SEARCH,                       "factor",  "[0,1)",                      \
    "adamw: decay of the mean square") \
  X(trust,            F64,  0.001,             EN_TRAIN | EN_SEARCH,                       "factor",  "(0,inf)",                    \
    "lars: trust coefficient") \
  X(eps,              F64,  -1,                EN_TRAIN | EN_SEARCH,                       "number",  "-1|[0,inf)",                 \
    "rmsprop: inside the root; adamw: outside; lars: beside the norms (-1: 0.001, 1e-8 and 0)") \
  X(weight_decay,     F64,  1e-5,              EN_TRAIN | EN_SEARCH,                       "factor",  "[0,1)",                      \
    "L2 penalty on all but batch norm (lars: nor biases); adamw: decoupled, times the rate") \
  X(label_smoothing,  F64,  0.1,               EN_TRAIN | EN_SEARCH,                       "share",   "[0,1)",                      \
    "share of the target spread over all classes") \
  X(dropout,          F64,  -1,                EN_TRAIN | EN_SEARCH,                       "share",   "-1|[0,1)",                   \
    "dropout before the classifier (-1: the model's own)") \
  X(drop_path,        F64,  -1,                EN_TRAIN | EN_SEARCH,                       "share",   "-1|[0,1)",                   \
    "stochastic depth at the last block (-1: the model's own)") \
  X(ema,              F64,  0.9999,            EN_TRAIN | EN_SEARCH,                       "factor",  "[0,1)",                      \
    "moving average of the weights, with its ramp (0: none)") \
  X(bn_group,         STR,  "all",             EN_TRAIN | EN_SCALING | EN_SEARCH,          "ranks",   "all|node|[1,inf)|[1,inf)i",  \
    "ranks that share batch-norm statistics: all, node, a number, or as many as have so many images together (128i)") \
  X(bn_momentum,      F64,  0,                 EN_TRAIN | EN_IMPORT | EN_SEARCH,                       "factor",  "[0,1]",                      \
    "share of a batch in the running statistics (0: the model's own; B0 to B8: 0.01)") \
  X(augment,          STR,  "autoaugment",           EN_TRAIN | EN_BENCH | EN_SEARCH,            "name",    "autoaugment|autoaugment-paper|randaugment|basic|none", \
    "autoaugment (the reference's policy v0), autoaugment-paper, randaugment, basic (crop and flip) or none (evaluation crop)") \
  X(stages,           I64,  1,                 EN_TRAIN,                                   "number",  "[1,64]",                     \
    "progressive training: equal parts of the run in which images and regularisation grow (1: off)") \
  X(size_from,        I64,  128,               EN_TRAIN,                                   "pixels",  "[32,4096]",                  \
    "stages: the size that images grow from, to --image-size") \
  X(stage_ramp,       STR,  "reference",       EN_TRAIN,                                   "name",    "reference|paper",            \
    "stages: sides of the reference's code, the first one above --size-from, or of the paper, beginning with it") \
  X(magnitude_from,   F64,  5,                 EN_TRAIN,                                   "level",   "[0,30]",                     \
    "stages: the level that randaugment grows from, to --magnitude") \
  X(mix_from,         F64,  0,                 EN_TRAIN,                                   "alpha",   "[0,100]",                    \
    "stages: the alpha that --mixup and --cutmix grow from") \
  X(dropout_from,     F64,  -1,                EN_TRAIN,                                   "share",   "-1|[0,1)",                   \
    "stages: the dropout that --dropout grows from (-1: the same in all, as in the reference's code)") \
  X(rand_ops,         I64,  2,                 EN_TRAIN | EN_BENCH | EN_SEARCH,            "number",  "[1,16]",                     \
    "randaugment: operations a picture") \
  X(magnitude,        F64,  10,                EN_TRAIN | EN_BENCH | EN_SEARCH,            "level",   "[0,30]",                     \
    "randaugment: level of its operations (paper: B5 17, B7 28)") \
  X(erase,            F64,  0,                 EN_TRAIN | EN_BENCH | EN_SEARCH,            "share",   "[0,1]",                      \
    "share of pictures with a rectangle erased (random erasing)") \
  X(erase_fill,       STR,  "noise",           EN_TRAIN | EN_BENCH | EN_SEARCH,            "name",    "noise|mean",                 \
    "what an erased rectangle is filled with") \
  X(mixup,            F64,  0,                 EN_TRAIN | EN_BENCH | EN_SEARCH,            "alpha",   "[0,100]",                    \
    "mixup: alpha of its Beta distribution (0: off)") \
  X(cutmix,           F64,  0,                 EN_TRAIN | EN_BENCH | EN_SEARCH,            "alpha",   "[0,100]",                    \
    "cutmix: alpha of its Beta distribution (0: off); with --mixup every other pair") \
  X(resize,           STR,  "auto",            EN_TRAIN | EN_EVAL | EN_PREDICT | EN_BENCH | EN_IMPORT | EN_CAM | EN_SEARCH, "name",    "auto|bicubic|bilinear|bicubic-aa|bilinear-aa", \
    "auto (the checkpoint's, else bicubic), bicubic (the reference's), bilinear (V2's); -aa: antialiased, as Pillow") \
  X(normalise,        STR,  "auto",            EN_TRAIN | EN_EVAL | EN_PREDICT | EN_IMPORT | EN_CAM | EN_SEARCH, "name", "auto|imagenet|half|unit", \
    "what pixels become: auto (as the weights were trained, else the model's own), imagenet (by its mean and deviation), half ((v-128)/128: V2 S to XL) or " \
    "unit ((v-127.5)/127.5: 0.5 and 0.5 of other programs)") \
  X(eval_crop,        STR,  "auto",            EN_TRAIN | EN_EVAL | EN_PREDICT | EN_IMPORT | EN_CAM | EN_SEARCH, "name", "auto|reference|none|v2", \
    "evaluation looks at: auto (as --normalise), reference (the middle), none (all, made square) or v2 (below 320 px the middle, else all)") \
  X(train_crop,       STR,  "reference",       EN_TRAIN | EN_SEARCH,                       "name",    "reference|v2",               \
    "training looks at: reference (8 to 100 % of the area) or v2 (5 to 100 %)") \
  X(decode,           STR,  "exact",           EN_TRAIN | EN_BENCH | EN_SEARCH,            "name",    "exact|scaled",               \
    "JPEG: exact, or scaled (large crops at 1/2, 1/4, 1/8 size: faster, slightly other pixels)") \
  X(prefetch,         I64,  0,                 EN_TRAIN | EN_EVAL | EN_SEARCH,             "MiB",     "[0,1048576]",                \
    "memory for batches decoded ahead (0: two batches)") \
  X(cache,            STR,  "",                EN_TRAIN | EN_SEARCH,                       "place",   "",                           \
    "keep decoded, shrunk images: memory, or a folder on a local disk") \
  X(cache_side,       I64,  0,                 EN_TRAIN | EN_SEARCH,                       "pixels",  "0|[32,4096]",                \
    "shorter side of cached images (0: 8/7 of the image size)") \
  X(checkpoint_every, SPAN, "1e",              EN_TRAIN | EN_SEARCH,                       "span",    "[0,inf)",                    \
    "steps (500), epochs (2e) or time (15m, 1h30m) between checkpoints; 0: only at the end") \
  X(keep,             I64,  3,                 EN_TRAIN | EN_DOCTOR | EN_SEARCH,           "files",   "[1,1000000]",                \
    "newest checkpoints to keep, beside best.h5") \
  X(max_skipped,      I64,  3,                 EN_TRAIN | EN_SEARCH,                       "steps",   "[0,1000000]",                \
    "steps in a row that are skipped because loss or gradients are not finite; more are a divergence")                    \
  X(on_divergence,    STR,  "stop",            EN_TRAIN | EN_SEARCH,                       "word",    "stop|back",                  \
    "stop (exit code 4), or back: to the newest checkpoint, with a lower rate")                                           \
  X(back_lr,          F64,  0.5,               EN_TRAIN | EN_SEARCH,                       "factor",  "(0,1]",                      \
    "the rate after going back, beside the one of before")                                             \
  X(compare_every,    SPAN, "500",             EN_TRAIN | EN_SEARCH,                       "span",    "[0,inf)",                    \
    "steps, epochs (2e) or time (15m) after which the ranks compare hashes of weights and optimizer; 0: when saving only") \
  X(eval_every,       SPAN, "1e",              EN_TRAIN | EN_SEARCH,                       "span",    "[0,inf)",                    \
    "steps, epochs (2e) or time (45m) between evaluations; 0: only at the end") \
  X(eval_weights,     STR,  "ema",             EN_TRAIN | EN_EVAL | EN_PREDICT | EN_CAM | EN_SEARCH, "name",    "ema|raw",                    \
    "ema or raw") \
  X(eval_size,        I64,  0,                 EN_TRAIN | EN_EVAL | EN_PREDICT | EN_CAM | EN_SEARCH, "pixels",  "0|[32,4096]",                \
    "side of the evaluation images (0: the model's own, or the training size where that is not the model's own)") \
  X(eval_batch,       I64,  0,                 EN_TRAIN | EN_EVAL | EN_SEARCH,             "images",  "[0,65536]",                  \
    "images per rank and pass while evaluating (0: the micro-batch, or 32)") \
  X(checkpoint,       STR,  "",                EN_EVAL | EN_PREDICT | EN_CAM,                       "path",    "",                           \
    "a checkpoint, or a run's folder (its best.h5, else the newest)") \
  X(logits,           STR,  "",                EN_EVAL,                                    "path",    "",                           \
    "write /logits, /labels, /files to this HDF5 file") \
  X(top,              I64,  5,                 EN_PREDICT,                                 "classes", "[1,inf)",                    \
    "how many classes to print for each image") \
  X(seed,             I64,  0,                 EN_TRAIN | EN_SYNTH | EN_BENCH | EN_SEARCH, "number",  "[0,inf)",                    \
    "seed of everything random") \
  X(threads,          I64,  0,                 EN_TRAIN | EN_EVAL | EN_PREDICT | EN_BENCH | EN_CAM | EN_SEARCH | EN_SCALING, "threads", "[0,1024]",                   \
    "compute threads per rank (0: OMP_NUM_THREADS, else this host's cores / its ranks)") \
  X(lanes,            I64,  0,                 EN_TRAIN | EN_BENCH | EN_SEARCH | EN_SCALING,            "parts",   "[0,1024]",                   \
    "fixed partitions of every sum; equal lanes give equal bits on any number of threads (0: --threads)") \
  X(workers,          I64,  0,                 EN_TRAIN | EN_EVAL | EN_PACK | EN_BENCH | EN_SEARCH | EN_SCALING, "threads", "[0,1024]",                   \
    "threads that read and decode, ahead of the step (0: as --threads; pack: one a core)") \
  X(max_bad,          F64,  0.01,              EN_TRAIN | EN_EVAL | EN_PACK | EN_SEARCH,   "share",   "[0,1]",                      \
    "end the run when more than this share of the files cannot be decoded") \
  X(max_pixels,       I64,  178956970,         EN_TRAIN | EN_EVAL | EN_PREDICT | EN_PACK | EN_BENCH | EN_CAM | EN_SEARCH, "pixels",  "[1,inf)",                    \
    "refuse images that claim more") \
  X(dump,             STR,  "",                EN_TRAIN,                                   "path",    "",                           \
    "write tensors of the first step to this HDF5 file: batch, logits, loss, before, gradients, after") \
  X(log_every,        F64,  10,                EN_TRAIN | EN_SEARCH,                       "seconds", "[0,inf)",                    \
    "between progress lines when output is not a terminal") \
  X(metrics,          STR,  "",                EN_TRAIN,                                   "path",    "",                           \
    "folder for metrics.jsonl of a run without --run, which saves nothing else and evaluates nothing") \
  X(alone,            FLAG, 0,                 EN_TRAIN,                                   "",        "",                           \
    "each rank trains by itself, with a global batch of its own: nothing is summed over ranks, nothing saved; metrics of rank R go to the folder " \
    "rank-R. Shows what ranks of one machine take from each other without any sum (effnet scaling)") \
  X(account_after,    I64,  0,                 EN_TRAIN,                                   "step",    "[0,inf)",                    \
    "the account of where the time went begins anew after this step, so that a warm-up stands apart (0: not)") \
  X(stop_after,       SPAN, "0",               EN_TRAIN | EN_SEARCH,                       "span",    "[0,inf)",                    \
    "save and leave with 75, as on SIGUSR1: after this step (100), this epoch (2e), or so long after the start (3h50m); 0: never") \
  X(stall_timeout,    STR,  "10m,startup=30m,checkpoint=30m,ending=30m", EN_TRAIN | EN_EVAL | EN_SEARCH, "span",  "",                           \
    "end with 5 when a rank stands in one section for longer: SPAN[,section=SPAN]...; 0: never. Sections: startup, data, forward, " \
    "backward, update, device, checkpoint, evaluation, output, ending, collective") \
  X(to,               STR,  "timm",            EN_EXPORT,                                  "names",   "timm|torchvision|safetensors", \
    "whose names the tensors get: timm's (safetensors: the same) or torchvision's; the file is safetensors in any case") \
  X(weights,          STR,  "ema",             EN_EXPORT,                                  "name",    "ema|raw",                    \
    "ema (raw where the checkpoint has none) or raw") \
  X(from,             STR,  "auto",            EN_IMPORT,                                  "names",   "auto|timm|torchvision",      \
    "whose names the tensors have: auto (by the names), timm's (its tf_* models) or torchvision's") \
  X(padding,          STR,  "auto",            EN_IMPORT,                                  "name",    "auto|tf_same|symmetric",     \
    "that the weights were trained with: auto (what the file says, else that library's), tf_same or symmetric") \
  X(bn_eps,           F64,  0,                 EN_IMPORT,                                  "number",  "[0,1]",                      \
    "epsilon of batch norm that the weights were trained with (0: what the file says, else that library's)") \
  X(class_names,      STR,  "",                EN_IMPORT,                                  "path",    "",                           \
    "names of the classes: a text with a name a line, or a dataset that has them (\"\": what the file says)") \
  X(class,            STR,  "",                EN_CAM,                                     "name",    "",                           \
    "name or number of the class that is looked for (\"\": the most probable one)") \
  X(out,              STR,  "cam.png",         EN_CAM,                                     "path",    "",                           \
    "the picture to write, a PNG") \
  X(train_per_class,  I64,  64,                EN_SYNTH,                                   "images",  "[1,1000000]",                \
    "training pictures a class") \
  X(val_per_class,    I64,  16,                EN_SYNTH,                                   "images",  "[0,1000000]",                \
    "validation pictures a class") \
  X(synth_classes,    I64,  10,                EN_SYNTH,                                   "classes", "[2,10]",                     \
    "how many classes, 2 to 10") \
  X(synth_size,       I64,  96,                EN_SYNTH,                                   "pixels",  "[32,4096]",                  \
    "side of the pictures") \
  X(split,            STR,  "",                EN_PACK | EN_BENCH,                         "name",    "",                           \
    "train or val: only this part of the dataset (\"\": pack all, bench train)") \
  X(max_side,         I64,  0,                 EN_PACK,                                    "pixels",  "0|[32,65500]",               \
    "shrink images whose longer side is longer, and encode them anew (0: original bytes)") \
  X(quality,          I64,  95,                EN_PACK,                                    "percent", "[1,100]",                    \
    "JPEG quality of shrunk images") \
  X(verify,           FLAG, 0,                 EN_PACK,                                    "",        "",                           \
    "check every byte of FILE.h5 and write nothing") \
  X(rate,             F64,  0,                 EN_BENCH,                                   "images/s","[0,inf)",                    \
    "bench data: images/s that a GPU of yours trains (0: the model's floor on an H200)") \
  X(bandwidth,        F64,  0,                 EN_BENCH,                                   "GB/s",    "[0,inf)",                    \
    "bench passes: memory bandwidth that floors are taken from (0: measured)") \
  X(tflops,           F64,  0,                 EN_BENCH,                                   "TFLOP/s", "[0,inf)",                    \
    "bench passes: rate of matrix products that floors are taken from (0: measured)") \
  X(ranks,            STR,  "",                EN_SCALING,                                 "numbers", "",                           \
    "measure: how many ranks, one run after another: 1,2,4,8") \
  X(hosts,            STR,  "",                EN_SCALING,                                 "path",    "",                           \
    "hostfile of mpirun for --ranks, a line `name slots=8` a host (\"\": this machine, or what Slurm allocated)") \
  X(warm_steps,       I64,  10,                EN_SCALING,                                 "steps",   "[2,1000000]",                \
    "steps of each run before those that are measured") \
  X(rounds,           I64,  1,                 EN_SCALING,                                 "rounds",  "[1,50]",                     \
    "measure each number of ranks so many times, in turn, --steps in all: for machines that others use too") \
  X(predict,          FLAG, 0,                 EN_SCALING,                                 "",        "",                           \
    "predict, by a model of the step, for a machine that --cluster describes") \
  X(cluster,          STR,  "",                EN_SCALING,                                 "path",    "",                           \
    "what the machine is: a text of `key = value`; launch/clusters/ has some") \
  X(gpus,             STR,  "",                EN_SCALING,                                 "numbers", "",                           \
    "how many GPUs, or ranks on processors: 8,64,512 (\"\": 1, 2, 8 and 64 nodes)") \
  X(weak,             FLAG, 0,                 EN_SCALING,                                 "",        "",                           \
    "every rank takes --micro-batch images a step, however many ranks there are; so it is unless --strong is said") \
  X(strong,           FLAG, 0,                 EN_SCALING,                                 "",        "",                           \
    "a step is of --global-batch images, however many ranks there are") \
  X(bn_images,        I64,  0,                 EN_SCALING,                                 "images",  "[0,1000000]",                \
    "batch-norm groups of as many ranks as have so many images, in place of --bn-group") \
  X(bucket_mib,       I64,  25,                EN_SCALING,                                 "MiB",     "[0,4096]",                   \
    "gradient buckets are cut at about so much (4 where MPI sums between hosts)") \
  X(times,            STR,  "",                EN_SCALING,                                 "path",    "",                           \
    "measured passes: what `effnet bench passes --json` printed (\"\": floors, and what share of them the machine reaches)") \
  X(gpu_rate,         F64,  0,                 EN_SCALING,                                 "images/s","[0,inf)",                    \
    "what one rank by itself trains: forward and backward are stretched to it (0: not)") \
  X(data_rate,        F64,  0,                 EN_SCALING,                                 "images/s","[0,inf)",                    \
    "what the input side of one rank gives; bench data tells (0: enough)") \
  X(folder,           STR,  "",                EN_SCALING | EN_BENCH,                      "path",    "",                           \
    "write a table (CSV) and figures (SVG) there") \
  X(sizes,            STR,  "",                EN_BENCH | EN_SCALING,                                   "bytes",   "",                           \
    "bench comm: sizes of gradient sums, as 64k,1m,25m (\"\": 4 KiB to 256 MiB, each twice the one before, while they are quick)") \
  X(list,             FLAG, 0,                 EN_DESCRIBE | EN_SEARCH,                    "",        "",                           \
    "list all models") \
  X(memory,           FLAG, 0,                 EN_DESCRIBE,                                "",        "",                           \
    "the memory plan for --micro-batch images") \
  X(json,             FLAG, 0,                 EN_EVAL | EN_PREDICT | EN_DESCRIBE | EN_DOCTOR | EN_BENCH | EN_PACK | EN_CAM | EN_SCALING | EN_SEARCH, "",        "",             \
    "print one JSON object and nothing else on stdout") \
  EN_OPTIONS_OF_FAULTS(X)

#ifdef EN_FAULTS                                /* the tests' build */
#define EN_OPTIONS_OF_FAULTS(X)                                                                                                     \
  X(inject,           STR,  "",                EN_TRAIN | EN_SEARCH,                       "faults",  "",                           \
    "faults on purpose, for tests: KIND@RANK:STEP[:SECTION],... with kill, stall, freeze, term, usr1, slow, nan, flip, enospc (inject.h)")
#else
#define EN_OPTIONS_OF_FAULTS(X)
#endif

#define EN_OPTION_CTYPE_STR  const char *
#define EN_OPTION_CTYPE_I64  int64_t
#define EN_OPTION_CTYPE_F64  double
#define EN_OPTION_CTYPE_FLAG bool
#define EN_OPTION_CTYPE_SPAN en_span

enum { EN_GIVEN_WORDS = 4 };                   /* of 64 options each                                     */

typedef struct {
    int command;                               /* EN_TRAIN, ...                                          */
#define EN_OPTION_FIELD(field, type, ...) EN_OPTION_CTYPE_##type field;
    EN_OPTIONS(EN_OPTION_FIELD)
    uint64_t given[EN_GIVEN_WORDS];            /* bit i: option i of the table stood on the command line */
    int operands; char **operand;              /* what is left: FILE..., MODEL, DIR; borrowed from argv  */
} en_options;

const char *en_command_name(int command);      /* EN_TRAIN: "train"; NULL for no command                */

/* Parses argv[first..argc) for `command`.  EN_EUSAGE: unknown option (names the nearest one of this command, or the command
 * that has it), a missing or malformed value, a value out of range (says the range), --help is not an error:
 * *wants_help.  Values are `--name value` or `--name=value`; `--` ends the options.
 * Texts are borrowed from argv; operands are moved to argv[first], argv[first + 1], ... */
en_status en_options_parse(int command, int argc, char **argv, int first, en_options *o, bool *wants_help);
bool en_option_given(const en_options *o, const char *field);   /* field as in the table: "global_batch" */
/* As if `--field text` stood on the command line, but not given; what the command does not take stays as it is.  text: borrowed.
 * EN_EINVAL: there is no such option; EN_EUSAGE as above. */
en_status en_option_set(en_options *o, const char *field, const char *text);
/* The value as en_options_text writes it; false: there is no such option, or the command does not take it. */
bool en_option_text(const en_options *o, const char *field, char *out, size_t size);
/* "global-batch=256\n" for every option of the command, as the checkpoint and run.txt keep them; numbers read back to the
 * same bits; malloc'd, NULL without memory. */
char *en_options_text(const en_options *o);
/* The value of option `name` ("global-batch") in such a text, cut to fit; false: it is not there. */
bool en_options_text_find(const char *text, const char *name, char *value, size_t size);
/* "epochs 10 -> 20, lr 0.1 -> 0.016": the options that are in both texts, have another value in the second, and decide what is trained
 * (not paths, threads, or when something is saved or said).  malloc'd; NULL: none. */
char *en_options_text_changes(const char *then, const char *now);
void en_options_help(int command, void *stream /* FILE * */);   /* usage, one line an option, from the table */
/* `text` from column `column` on and a line's end, broken between words so that no line is wider than 118. */
void en_print_wrapped(void *stream /* FILE * */, const char *text, int column);

#endif
