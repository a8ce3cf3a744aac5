"""Every key that a run has, with its default: the CYBORG recipe (Boyd et al., WACV 2023), but ResNet-18 from scratch.

Other configs start from this one and change a few lines. A key set to a placeholder is unset (None): its owner's
default holds, and setting it where its owner has no such option is refused.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of initial weights, order of examples and augmentation
    config.epochs = 50
    config.batch_size = 20  # of an update, over all devices
    config.accumulate_steps = 1  # parts that a batch is worked through in, one after the other, to need less memory
    config.strategy = "cross_entropy"  # a key of tfcam_jax.strategies.STRATEGIES

    # Options of the strategy.
    config.guidance = ConfigDict()
    config.guidance.alpha = placeholder(float)  # total = alpha * cross-entropy + (1 - alpha) * guidance
    config.guidance.weighting = placeholder(str)  # fixed; or loss_share: each step's alpha = CE / (CE + guidance)
    config.guidance.divergence = placeholder(str)  # mse, l1, bce, kl or pearson
    config.guidance.cam_class = placeholder(str)  # whose map is T, U being the others': "true" or "predicted"
    config.guidance.cam_features = placeholder(str)  # cyborg: "pooled", or "hooked" as in the CYBORG code
    # energy, outside, order, place_and_consistency: "true" or "difference"
    config.guidance.attribution = placeholder(str)
    config.guidance.schedule = placeholder(str)  # of 1 - alpha: fixed; linear_down, to 0; early, then 0
    config.guidance.schedule_share = placeholder(float)  # of training, until it is 0; unset: linear_down 1, early 0.5
    config.guidance.unmarked = placeholder(str)  # of D on images without a map, of the next key: flat or positive
    config.guidance.unmarked_classes = placeholder(
        tuple
    )  # names of classes on which there is nothing to mark: ("normal",)

    config.data = ConfigDict()
    config.data.source = "manifest"  # a key of tfcam_jax.data.SOURCES
    config.data.image_size = placeholder(int)  # pixels; unset: the model's own, see tfcam_jax/models/__init__.py
    config.data.resize_through = ()  # sides that images are resized to on their way to image_size: (256,)
    config.data.channels = 3  # 1 for grayscale: repeated to three on the device
    config.data.mean = placeholder(tuple)  # of RGB in [0, 1]; unset: the model's own
    config.data.std = placeholder(tuple)
    config.data.bits = placeholder(
        int
    )  # in use in images of 16; unset: by the largest values, if all agree; 0: each by its own
    config.data.num_threads = 2  # that decode and augment
    config.data.num_workers = 0  # processes that decode and augment; 0: threads of this one
    config.data.kept_megabytes = 1024  # of what comes before model.train_from, computed once for each image; 0: never
    # Of decoded images and maps, kept beside the manifest for the next epoch and the next start; 0: none. See
    # tfcam_jax/data/README.md.
    config.data.cache_megabytes = 1024
    config.data.cache_dir = ""  # another folder for them
    config.data.skip_unreadable = False  # True: leave out rows whose files can't be read, and count them in the results
    config.data.balance = "none"  # of classes in training: none, weights (of the cross-entropy) or sampling

    # Human maps.
    config.data.maps = ConfigDict()
    config.data.maps.combine = "mean"  # several annotators: mean, majority or an annotator's name
    config.data.maps.sigma = 50.0  # of fixations' Gaussians: pixels of the image, or degrees with the next key
    config.data.maps.pixels_per_degree = 0.0  # image pixels in a degree, if its table doesn't say; 0: sigma in pixels
    config.data.maps.invert = False  # True: 1 - map, where the files are dark where people looked
    config.data.maps.page = placeholder(int)  # of files of several pages, slices or frames, from 1; unset: refused
    config.data.maps.categories = ()  # of marks in tables, by name: those that count; empty: all
    # Columns of CSV tables and keys of JSON lists whose names are none of those that are known; "": as known.
    config.data.maps.columns = ConfigDict()
    config.data.maps.columns.image = ""
    config.data.maps.columns.annotator = ""
    config.data.maps.columns.category = ""
    config.data.maps.columns.x = ""  # of a box's corner nearest to the origin, or of a fixation
    config.data.maps.columns.y = ""
    config.data.maps.columns.width = ""
    config.data.maps.columns.height = ""
    config.data.maps.columns.x_min = ""
    config.data.maps.columns.y_min = ""
    config.data.maps.columns.x_max = ""
    config.data.maps.columns.y_max = ""
    config.data.maps.columns.x_center = ""
    config.data.maps.columns.y_center = ""
    config.data.maps.columns.box = ""  # x, y, width, height in one cell
    config.data.maps.columns.polygon = ""  # x, y, x, y, ...
    config.data.maps.columns.duration = ""  # of a fixation
    config.data.maps.columns.unit = ""  # of coordinates: pixels, shares or percent
    config.data.maps.columns.image_width = ""  # of the picture that was annotated
    config.data.maps.columns.image_height = ""
    config.data.maps.blur = 0.0  # standard deviation of a Gaussian, as a share of the longer side
    config.data.maps.threshold = 0.0  # 1 where the map reaches this share of its peak, else 0; 0: as it is
    config.data.maps.resize = "with_image"  # straight: training's from file to CAM, in 8 bits, as in the CYBORG code
    config.data.maps.predicted = "use"  # maps of launch/predict_maps.py: use, ignore, or other_image, a control
    config.data.maps.share = 1.0  # of training's maps that people drew, to see what fewer would do
    config.data.maps.share_seed = 0  # of which ones
    config.data.maps.placebo = "none"  # of training, for true maps: other_image, mean_map, border_ring or inverted

    # Which images train, validate and test.
    config.data.protocol = ConfigDict()
    config.data.protocol.name = "published"  # closed, open, leave_one_domain_out or k_fold
    config.data.protocol.domains = ()  # open, leave_one_domain_out: those that only test
    config.data.protocol.num_folds = 5  # k_fold: parts of all images, whole groups together
    config.data.protocol.fold = 0  # k_fold: the part that tests; the next one validates
    config.data.protocol.seed = 0  # k_fold: of the parts
    config.data.protocol.leakage = "refuse"  # groups or equal images in two splits: refuse, or drop them from training

    # Options of the sources, each under its name.
    config.data.manifest = ""  # path of the CSV, for source "manifest"
    config.data.labels = placeholder(tuple)  # manifest, folders: class names in order of their index; unset: sorted
    config.data.folders = ConfigDict()
    config.data.folders.images = ""  # a folder for each class below it, or train, val and test above the classes
    config.data.folders.maps = ""  # folder of maps, or one table for all images; "": they lie beside the images
    config.data.folders.map_names = ("map", "mask", "heatmap", "saliency", "blended")  # 1.png has 1_map.png, 1-mask.png
    config.data.folders.image_names = ()  # endings of images that are no maps of the one beside: 1_flip.png of 1.png
    config.data.folders.group_pattern = ""  # regular expression: its first group in an image's path is the group
    config.data.folders.domain_pattern = ""  # the same of the domain
    config.data.folders.shares = (0.7, 0.15, 0.15)  # of train, val and test, where no folders say which is which
    config.data.folders.seed = 0  # of that draw
    config.data.demo = ConfigDict()
    config.data.demo.data_dir = ""  # "": TFDS's own default
    config.data.demo.seed = 0
    config.data.demo.num_train = 1600
    config.data.demo.num_val = 300
    config.data.demo.num_test = 600  # of each of the two parts, closed and open
    # How often each shortcut fits the class in training, validation and closed test: 0.5 is a coin.
    config.data.demo.shortcut_agreement = 0.9  # the global one, the colour of the light
    config.data.demo.local_agreement = 0.9  # the local one, a light or a dark stain
    config.data.demo.open_agreement = 0.5  # of both in the open test; 0: reversed
    config.data.demo.normal = False  # True: a class without marks and maps, as in attack detection
    # manual_dir: the owner's files; "": the set prepared before. data_dir: of prepared sets; "": TFDS's own default.
    config.data.cyborg_faces = ConfigDict()
    config.data.cyborg_faces.manual_dir = ""
    config.data.cyborg_faces.data_dir = ""
    config.data.cyborg_faces.train_lists = ("csvs/original.csv",)  # `train` rows train, `test` rows validate
    config.data.cyborg_faces.test_lists = ("csvs/gan_test_sets/*.csv",)
    config.data.cyborg_faces.images = ""  # folder that paths in the lists are relative to; "": manual_dir itself
    config.data.cyborg_faces.heatmaps = "heatmaps"
    config.data.cyborg_faces.group_pattern = ""  # regular expression: its first group in a path names the person
    config.data.iris_pad = ConfigDict()
    config.data.iris_pad.manual_dir = ""
    config.data.iris_pad.data_dir = ""
    config.data.iris_pad.lists = ("*.csv", "[cC][sS][vV][sS]/**/*.csv")  # without any: folders named by type
    config.data.iris_pad.images = "images"
    config.data.iris_pad.maps = "maps"
    config.data.iris_pad.group_pattern = ""  # as above, the eye or person
    config.data.iris_pad.type_pattern = ""  # the same of the attack type, where the class says attack or spoof alone
    config.data.iris_pad.type_column = ""  # name, or number from 1, of the lists' column with the attack type
    config.data.chest_xray = ConfigDict()
    config.data.chest_xray.manual_dir = ""
    config.data.chest_xray.data_dir = ""
    config.data.chest_xray.collections = ()  # nih, rsna, egd, reflacx, vindr, chexlocalize, siim, lists; empty: all
    config.data.chest_xray.owner_splits = ("egd", "reflacx", "lists")  # split by their owners; others by patient
    config.data.chest_xray.annotated_only = True  # by patient: without abnormal films that nobody annotated
    config.data.chest_xray.normals = 1.0  # by patient: normal films for each annotated abnormal one; 0: all
    config.data.chest_xray.shares = (0.7, 0.1, 0.2)  # of train, val and test, drawn by patient
    config.data.chest_xray.seed = 0  # of both draws
    config.data.chest_xray.degrees = 1.0  # sigma of fixations whose table has pixels per degree (reflacx)
    config.data.chest_xray.reflacx_maps = "fixations"  # or "ellipses"
    config.data.chest_xray.maps = "maps"  # of collection lists
    config.data.chest_xray.group_pattern = ""  # of collection lists: as above, the patient

    # Augmentation in training, of image and human map jointly but for colour and blur: none in the recipe.
    config.augment = ConfigDict()
    config.augment.flip = 0.0  # probability of a horizontal flip
    config.augment.crop = 0.0  # largest share of each side cut off
    config.augment.rotate = 0.0  # largest angle, degrees
    config.augment.translate = 0.0  # largest shift, as a share of the side
    config.augment.scale = 0.0  # largest relative change of size
    config.augment.shear = 0.0  # largest angle, degrees
    config.augment.brightness = 0.0  # of the image alone: largest shift, as a share of the range
    config.augment.contrast = 0.0  # largest relative change
    config.augment.saturation = 0.0  # largest relative change
    config.augment.map_blur = ()  # of the map alone: sigmas of a 3 x 3 Gaussian in map pixels, from and to: (0.1, 2.0)

    config.model = ConfigDict()
    config.model.name = "resnet18"  # a key of tfcam_jax.models.MODELS, or my_package.my_module:build, your own
    config.model.weights = (
        ""  # "": from scratch; "imagenet", a .safetensors or .pth file, a Hub repository, or a run's folder
    )
    config.model.train_from = ""  # first part that is trained: "block6_0" of mobilenet_v2, "head"; "": all
    config.model.keep_head = False  # take the weights' head too; classes must agree
    config.model.one_logit = False  # of two classes: one logit z in place of two, which are then -z/2 and z/2
    config.model.dtype = "float32"  # of convolutions and activations: float32 or bfloat16
    config.model.head_init = "lecun"  # of the new head: lecun (normal, bias 0) or pytorch (nn.Linear's uniform)
    config.model.dropout = 0.0  # share of the pooled channels that training drops before the head
    config.model.batch_norm_momentum = 0.9  # share of the running statistics that a step keeps
    config.model.freeze_batch_norm = False  # keep the batch statistics of the weights, for few images
    config.model.pool = placeholder(str)  # ViTs: token (the class token) or mean (of the patches); unset: token
    config.model.output_stride = 32  # ResNets, mobilenet_v2, efficientnet_lite0: pixels for a place of the CAM: 16, 8
    config.model.rematerialize = False  # less memory, about a third more time

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam or adamw
    config.optimizer.learning_rate = 0.005
    config.optimizer.momentum = placeholder(float)  # sgd: 0.9
    config.optimizer.weight_decay = 1e-6
    config.optimizer.clip_norm = 0.0  # 0: no clipping
    config.optimizer.schedule = "step"  # step, cosine or constant
    config.optimizer.step_epochs = placeholder(int)  # step: 12
    config.optimizer.step_factor = placeholder(float)  # step: 0.1
    config.optimizer.warmup_epochs = 0.0

    # How the devices are used: results don't depend on it, but for batch_norm = "local".
    config.parallel = ConfigDict()
    config.parallel.mode = "auto"  # jit: one device; mesh: all, also of several hosts; pmap: all of this process
    config.parallel.devices = placeholder(int)  # how many, over all hosts; unset: all
    config.parallel.shard_state = False  # mesh: spread parameters and optimiser state over the devices
    config.parallel.batch_norm = "synchronized"  # statistics of the whole batch, or local: of each device's part

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 64
    config.evaluation.select_by = "accuracy"  # best checkpoint: accuracy, auroc or cross_entropy on validation
    config.evaluation.attack_detection = "auto"  # in tables: auto (where a class is named as one), always or never

    config.log_every_steps = 10
    config.log_gradient_norms = False  # of each term of the loss; another backward pass for each but the first
    config.checkpoint_every_steps = placeholder(int)  # besides the end of each epoch
    config.grace_seconds = 60.0  # after SIGTERM or SIGINT: to finish the step and save; then the process ends

    # For launch/compare.py: the runs to compare. Arms x alphas x protocols and their folds x seeds.
    config.compare = ConfigDict()
    config.compare.strategies = ("cross_entropy", "cyborg", "opposed", "difference", "contrast")
    config.compare.placebos = ()  # controls: other_image, mean_map, border_ring, inverted for the true maps,
    config.compare.placebo_of = ("cyborg", "difference")  # each for those of the strategies
    config.compare.variants = ConfigDict()  # further arms: a name, and the keys in which it differs from this config
    config.compare.alphas = ()  # every guided arm tries each, chosen on validation; empty: guidance.alpha alone
    config.compare.protocols = ()  # published, closed, open, leave_one_domain_out, k_fold; empty: data.protocol alone
    config.compare.seeds = (0,)
    config.compare.reference = "cyborg"  # the arm that the others are tested against
    config.compare.processes = 0  # that train at once; 0: one for each CPU core (8 at most), or for each GPU
    config.compare.held_megabytes = 1024  # of decoded images, kept in each process if all fit
    config.compare.engine = "processes"  # of this host; slurm: jobs of a cluster; local: jobs here, to try that

    # Of engines slurm and local: one job for each run. launch/README.md
    config.compare.cluster = ConfigDict()
    config.compare.cluster.partition = ""  # "": Slurm's default
    config.compare.cluster.minutes = 240  # of a job; a run that takes longer goes on in the next one
    config.compare.cluster.cpus = 4  # cores of a job
    config.compare.cluster.gpus = 1  # of a job; 0: it trains on its cores
    config.compare.cluster.memory_gb = 0  # of a job; 0: Slurm's default
    config.compare.cluster.jobs = 0  # handed in at once; 0: slurm: all, local: as many as there would be processes
    config.compare.cluster.restarts = 3  # of a run whose jobs die, in a row without a new checkpoint; then it failed
    config.compare.cluster.options = ()  # further long options of sbatch: ("account=mine", "qos=long", "exclusive")
    return config
