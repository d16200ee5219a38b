"""The nouns and spatial words of remote-sensing captions, as a word list: no part-of-speech tagger is needed.

[our decision] The list was made by reading the words of the train and val captions of RSICD, UCM-Captions,
NWPU-Captions and Sydney-Captions, and of the train questions of RSVQA and RSIVQA, by falling frequency. Three kinds of
nouns:

- ``area``: a scene or land use, which can fill an image ("residential area", "forest", "airport");
- ``structure``: one large thing that is the scene when a sentence is about it and a thing when not ("bridge",
  "river");
- ``thing``: everything else that is seen ("car", "tree", "roof").
"""

from dataclasses import dataclass
from typing import Literal


Kind = Literal["area", "structure", "thing"]


@dataclass(frozen=True)
class Noun:
    """One entry of the word list."""

    singular: str
    plural: str
    kind: Kind


@dataclass(frozen=True)
class Mention:
    """One noun as it occurs in a sentence: ``words[start:end]``."""

    noun: Noun
    is_plural: bool
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.noun.plural if self.is_plural else self.noun.singular


# One line per noun: "singular", or "singular/plural" where the plural is irregular (equal for a mass noun), then the
# other spellings that mean the same noun after "=".
_AREAS = """
    residential area = residential, residential district, residential zone, residential region, residential community,
        residential neighborhood, residential block, residential quarter, community, neighborhood, neighbourhood
    industrial area = industrial, industrial zone, industrial district, industrial region, industrial park,
        factory area
    commercial area = commercial, commercial district, commercial zone, commercial region, commercial block,
        business area
    business district = business, business zone, downtown
    urban area = urban
    rural area = rural, countryside, country
    suburb = suburban area
    city
    town
    village
    airport = airfield
    apron
    beach
    coast = coastline, shoreline
    island = archipelago, islet, eyot
    sea
    ocean
    lake
    pond
    wetland = wet land, marsh, swamp
    forest = woodland, rainforest, jungle
    desert
    meadow
    grassland/grassland = prairie, grassy land
    pasture
    farmland = cropland
    farm = ranch
    paddy field = rice field
    mountain = mountainous area, mountainous region
    plain
    hill
    valley
    wasteland/wasteland = waste land
    bare land/bare land = bareland, bare ground, barren land
    chaparral/chaparral
    park
    garden
    playground = sports ground
    sports area = sports field
    golf course
    baseball field = baseball diamond, baseball court, baseball ground, diamond
    tennis court = tennis field
    stadium = gymnasium, gym
    school
    campus/campuses = university
    square = plaza
    center = centre
    resort
    parking lot = parking area, parking, car park, parking space, parking spot
    port
    harbor = harbour, marina
    wharf/wharves = dock, pier, quay
    railway station = train station, subway station, station
    mobile home park
    storage area = tank farm
    construction site
    orchard
    cemetery
    military area
    nature reserve
    landfill
    heath
    gas station
    refinery
"""
_STRUCTURES = """
    river
    stream = creek, brook
    bridge
    viaduct
    overpass = flyover
    intersection = crossroads, crossroad, junction, cross point, crossing
    freeway = highway, expressway, motorway
    railway = rail, railroad
    runway
    church = cathedral
    storage tank = oil tank, tank, oil storage tank
    terminal = terminal building
    factory
    swimming pool = pool
    villa
"""
_THINGS = """
    building = architecture, edifice, construction
    house = cottage, housing
    mobile home
    home
    skyscraper = high rise
    workshop
    warehouse
    apartment
    court
    basketball court = basketball field, basketball
    badminton court = badminton field, badminton
    football field = football ground, football court, football, soccer field, soccer
    volleyball court
    field
    track = running track, runaway track
    stand = grandstand, bleacher, seat
    roof = ceiling, dome
    gate
    fence
    wall
    tower
    fountain
    ferris wheel
    statue
    road = roadway
    street = avenue, lane
    path = trail, footpath, pathway, alley, walkway
    roadside
    taxiway
    tarmac/tarmac = concrete, asphalt
    line = stripe, mark line, marking, white line
    mark
    car = automobile, vehicle, van, bus
    truck
    train
    container
    goods/goods = cargo
    plane = airplane, aircraft, aeroplane
    fuselage
    boat = yacht
    ship = vessel, freighter
    luggage/luggage
    people/people = person, pedestrian, player, worker, resident, tourist, guy
    tree = coconut tree, coconut
    woods/woods = wood, grove
    bush/bushes = shrub
    plant
    vegetation/vegetation = greenery, greening
    green belt = greenbelt
    green area = green land, greenland, green space
    grass/grass = weed
    lawn
    turf
    flower = flower bed
    crop
    wheat/wheat
    moss/moss = algae
    bunker
    water/waters = seawater, water area
    wave
    foam/foam = spray, spindrift, surf, spoondrift
    ripple
    reef
    bank
    shore = seaside
    sand/sand = sands
    dune = sand dune
    ridge
    ravine = gully
    slope
    cliff
    rock = stone
    soil/soil = mud, earth
    loess/loess = loess ground
    snow/snow
    ice/ice
    dust/dust
    land
    ground
    clearing = open space, open area, space
    wrinkle = texture
    crack
    shadow
    pipe = pipeline, tube, piping
    equipment/equipment = facility
    umbrella
    jar
    pavilion
    place of worship/places of worship
    farmyard
    depot
    allotment
    pitch
    scrub
    yard = backyard, courtyard
    leaf/leaves
    oasis/oases
    item
    block
"""
# Words that place one thing against another, one group a line; separated by commas.
_SPATIAL = """
    near, nearby, beside, besides, aside, alongside, along, next to, close to, closed to, adjacent to, against, apart
    between, among, amongst, around, round about, opposite, behind, over, above, under, below, beneath, outside, inside
    in front of, in the front of, in the middle of, in the middle, in the center of, in the center, in the heart of
    at the center of, at the edge of, on the edge of, edge of, on top of
    at the corner of, at the corner, at the corners, on the corner, in the corner of, in the corner, at one corner
    two sides of, two sides, both sides of, both sides, either side of, either side, each side, one side of, one side
    the side of, the side, other side, sides of, left side, right side, other hand, either hand
    both banks of, both banks, two banks of, two banks, the banks of, the bank of
    to the left of, to the right of, on the left, on the right, north of, south of, east of, west of
    surrounded, surround, surrounds, surrounding, semisurrounded, encircled, encircle, encircles, enclosed, embraced
    embraces, hemmed, flanked, sandwiched, wreathed, bordered, lined with
    across, through, crosses, cross, crossed, pass, passes, passing, traverses, spans, spanning
    stretches across, connect, connects, connected, connecting, linked, links
    separated, separates, separate, separating, divided, divides, divide
    parallel, perpendicular, vertical, diagonally, intersect, intersects, intersecting
"""
_ALWAYS_PLURAL = ("goods", "people", "woods")
# Nouns that are adjectives as well: "square houses", "diamond shaped", "the center building".
_ALSO_ADJECTIVES = ("square", "diamond", "center", "centre", "line", "country", "rail", "construction")


def _plural(singular: str) -> str:
    if singular.endswith(("s", "sh", "ch", "x")):
        return singular + "es"
    if singular.endswith("y") and singular[-2] not in "aeiou":
        return singular[:-1] + "ies"
    return singular + "s"


def _entries(text: str) -> list[str]:
    """The lines of a list above; a line that ends with a comma goes on in the next one."""
    return [line.strip() for line in text.replace(",\n", ",").splitlines() if line.strip()]


def _build() -> dict[tuple[str, ...], tuple[Noun, bool]]:
    """Every spelling of every noun, as words -> (noun, whether the spelling is a plural)."""
    forms: dict[tuple[str, ...], tuple[Noun, bool]] = {}
    kinds: list[tuple[Kind, str]] = [("area", _AREAS), ("structure", _STRUCTURES), ("thing", _THINGS)]
    for kind, text in kinds:
        for entry in _entries(text):
            head, _, others = entry.partition("=")
            singular, _, plural = head.strip().partition("/")
            noun = Noun(singular, plural or _plural(singular), kind)
            always = singular in _ALWAYS_PLURAL
            counted = always or noun.plural != singular  # "snows" is still "the snow"
            forms.setdefault(tuple(noun.plural.split()), (noun, counted))
            # A slip of the published questions: "cemeterys".
            forms.setdefault(tuple(f"{singular}s".split()), (noun, counted))
            forms[tuple(singular.split())] = (noun, always)
            for other in (name.strip() for name in others.split(",") if name.strip()):
                forms.setdefault(tuple(other.split()), (noun, always))
                forms.setdefault(tuple(_plural(other).split()), (noun, counted))
    return forms


def _spatial() -> dict[str, list[tuple[str, ...]]]:
    """The spatial phrases by their first word, the longest first."""
    phrases = [tuple(phrase.split()) for phrase in _SPATIAL.replace("\n", ",").split(",") if phrase.strip()]
    by_first: dict[str, list[tuple[str, ...]]] = {}
    for phrase in sorted(phrases, key=len, reverse=True):
        by_first.setdefault(phrase[0], []).append(phrase)
    return by_first


NOUNS = _build()
SPATIAL = _spatial()
LONGEST_NOUN = max(len(form) for form in NOUNS)

# Weaker placing words: they place a thing on a ground ("marks on the runway"). "in" is left out: "in an industrial
# area" says what the scene is, not how two things lie.
PLACING = frozenset({"on", "at", "by", "off", "beyond", "into", "from"})
# Words that stand for the second thing of a relation.
PRONOUNS = frozenset({"it", "them", "other", "others", "another"})


def mentions(words: list[str]) -> list[Mention]:
    """The nouns of the list in a sentence's lower-case words, in order; the longest match wins."""
    nouns: list[Mention] = []
    spatial = {place for start, end in spatial_spans(words) for place in range(start, end)}  # "in the center of"
    start = 0
    while start < len(words):
        match = None if start in spatial else _match(words, start)
        if match is None:
            start += 1
            continue
        following = words[match.end : match.end + 1]
        adjective = words[start] in _ALSO_ADJECTIVES and match.end == start + 1
        if not (adjective and following and (following[0] in ("shaped", "shape") or _match(words, match.end))):
            nouns.append(match)
        start = match.end
    return nouns


def _match(words: list[str], start: int) -> Mention | None:
    for length in range(min(LONGEST_NOUN, len(words) - start), 0, -1):
        form = NOUNS.get(tuple(words[start : start + length]))
        if form is not None:
            return Mention(form[0], form[1], start, start + length)
    return None


def spatial_spans(words: list[str]) -> list[tuple[int, int]]:
    """Where the spatial words stand, as ``(start, end)`` of non-overlapping spans."""
    spans = []
    start = 0
    while start < len(words):
        for phrase in SPATIAL.get(words[start], ()):
            if tuple(words[start : start + len(phrase)]) == phrase:
                spans.append((start, start + len(phrase)))
                start += len(phrase)
                break
        else:
            start += 1
    return spans
