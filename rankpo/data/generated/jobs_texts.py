"""Words of the job-talent world. Posts and profiles name the same field by different words, so that matching takes
more than shared tokens; seniority, recency and depth are worded in many ways."""

from __future__ import annotations

# field: (words of job posts, words of profiles, neighbouring field)
FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "soil": (
        ("soil physics", "agronomic soil research", "land and soil management"),
        ("water flow in clay", "pedology field trials", "hydraulic conductivity of loams", "tilth and compaction"),
        "water",
    ),
    "water": (
        ("hydrology", "water resources engineering", "catchment management"),
        ("river discharge models", "groundwater recharge", "flood forecasting", "aquifer tracer tests"),
        "soil",
    ),
    "vision": (
        ("computer vision", "image understanding", "visual perception engineering"),
        ("convolutional detectors", "pixel-wise segmentation", "camera calibration", "optical flow"),
        "language",
    ),
    "language": (
        ("natural language processing", "text analytics", "conversational systems"),
        ("transformer fine-tuning", "named entities", "machine translation", "dialogue agents"),
        "vision",
    ),
    "cardiology": (
        ("cardiology", "heart medicine", "cardiovascular care"),
        ("arrhythmia clinics", "echocardiograms", "stent placement", "atrial fibrillation cohorts"),
        "oncology",
    ),
    "oncology": (
        ("oncology", "cancer medicine", "tumour therapy research"),
        ("chemotherapy trials", "lymphoma registries", "checkpoint inhibitors", "biopsy genomics"),
        "cardiology",
    ),
    "tax": (
        ("corporate taxation", "fiscal advisory", "tax compliance"),
        ("transfer pricing files", "VAT disputes", "double taxation treaties", "withholding audits"),
        "audit",
    ),
    "audit": (
        ("financial auditing", "assurance services", "statutory audit"),
        ("internal controls testing", "consolidated statements", "ISA engagements", "sampling of ledgers"),
        "tax",
    ),
    "bridges": (
        ("structural engineering", "bridge design", "load-bearing structures"),
        ("prestressed girders", "fatigue of steel decks", "finite element frames", "cable-stayed spans"),
        "tunnels",
    ),
    "tunnels": (
        ("geotechnical engineering", "tunnelling", "underground construction"),
        ("shotcrete linings", "boring machine drives", "rock mass ratings", "dewatered excavations"),
        "bridges",
    ),
    "history": (
        ("medieval history", "archival scholarship", "history of the Middle Ages"),
        ("monastic charters", "palaeography of codices", "feudal tenures", "guild records"),
        "archaeology",
    ),
    "archaeology": (
        ("archaeology", "excavation and heritage", "material culture studies"),
        ("Roman coins", "stratigraphic trenches", "ceramic typologies", "Bronze Age barrows"),
        "history",
    ),
    "security": (
        ("information security", "cyber defence", "application security"),
        ("penetration tests", "malware reversing", "zero-trust rollouts", "incident response"),
        "networks",
    ),
    "networks": (
        ("network engineering", "telecom infrastructure", "routing and switching"),
        ("BGP peering", "fibre backbones", "software-defined WAN", "packet captures"),
        "security",
    ),
    "painting": (
        ("art conservation", "restoration of paintings", "museum conservation"),
        ("varnish removal", "pigment spectroscopy", "canvas relining", "panel cradles"),
        "history",
    ),
    "batteries": (
        ("energy storage", "battery technology", "electrochemical engineering"),
        ("lithium-ion electrolytes", "cathode coatings", "impedance spectra", "solid-state cells"),
        "solar",
    ),
    "solar": (
        ("photovoltaics", "solar power engineering", "renewable generation"),
        ("perovskite films", "inverter sizing", "module degradation", "irradiance models"),
        "batteries",
    ),
    "genetics": (
        ("genetics", "genome research", "hereditary disease research"),
        ("CRISPR screens", "linkage maps", "exome pipelines", "founder mutations"),
        "oncology",
    ),
    "marketing": (
        ("brand marketing", "consumer campaigns", "growth marketing"),
        ("loyalty programmes", "media mix models", "influencer contracts", "shelf tests"),
        "sales",
    ),
    "sales": (
        ("enterprise sales", "account management", "business development"),
        ("quota attainment", "tender negotiations", "channel partners", "pipeline reviews"),
        "marketing",
    ),
}

REGIONS: dict[str, tuple[str, ...]] = {
    "North Sea": ("Rotterdam", "Hamburg", "Aberdeen", "Bergen"),
    "Alps": ("Innsbruck", "Zurich", "Grenoble", "Turin"),
    "Iberia": ("Lisbon", "Seville", "Porto", "Valencia"),
    "Great Lakes": ("Chicago", "Toronto", "Detroit", "Cleveland"),
    "Pacific": ("Vancouver", "Seattle", "Portland", "San Diego"),
    "Baltic": ("Riga", "Gdansk", "Tallinn", "Stockholm"),
}

# wanted years of experience, from and to, and how posts say so
LEVELS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "junior": (0, 3, ("Entry-level post.", "Suited to recent graduates.", "No long track record is expected.")),
    "mid": (4, 8, ("Some years of practice expected.", "Mid-career position.", "You work independently.")),
    "senior": (9, 14, ("Senior position.", "A decade of practice is expected.", "You mentor others.")),
    "lead": (15, 24, ("Head of unit.", "You direct the department.", "Long leadership experience is essential.")),
}

YEARS = ("{years} years of experience", "{years} years in the profession", "practising for {years} years")
NO_YEARS = ("fresh from university", "recent graduate", "first job after the degree")
RECENT = ("currently working on it", "active in it today", "latest project finished {year}")
STALE = ("last worked on it in {year}", "not active in it since {year}", "left the subject in {year}")
DEPTH = (
    ("took an introductory course", "brief exposure as an assistant"),
    ("regular contributor", "solid working knowledge"),
    ("led projects end to end", "responsible for the whole method"),
    ("internationally recognised authority", "author of the standard reference"),
)

FILLERS = (
    "Enjoys working in teams and across departments.",
    "Speaks several languages and likes to travel.",
    "Organised workshops for colleagues and visitors.",
    "Has reviewed proposals and prepared reports on time.",
    "Volunteers at a local school on weekends.",
    "Handled budgets, suppliers and schedules with care.",
    "Gave talks to specialists and to the public.",
    "Known for careful documentation and clear writing.",
)
DUTIES = (
    "You will plan the work, report on results and talk to partners.",
    "The team is small, friendly and ambitious.",
    "We offer flexible hours, training and a fair salary.",
    "Applications are read as they come in.",
    "You present findings to clients and to the board.",
    "The position can be filled part-time.",
)
