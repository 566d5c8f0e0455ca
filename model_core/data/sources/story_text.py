"""Sentence templates and word lists of the generated stories.

A plot is a sequence of steps; a step is one of several sentences. ``{slot}`` is filled from the word lists and keeps
its value for the whole story; ``{slot2}`` is another word of the same list; ``{Slot}`` is capitalized; ``[a|b]`` is one
of the two. The words of a list are interchangeable, the most useful first.
"""

from __future__ import annotations

from collections.abc import Mapping

Step = tuple[str, ...]
Plot = tuple[Step, ...]

OPENING: Step = (
    "One day, {hero} {went} to the {place}.",
    "One {weather} {time}, {hero} {went} to the {place}.",
    "It was a {weather} {time}. {hero} was {at} the {place}.",
    "Once there was a {child} named {hero}. One {time} in {season}, {he} {went} to the {place}.",
    "On {weekday}, {hero} {went} to the {place} with {his} {kin}.",
    "In {month}, {hero} stayed {at} the {place} with {his} {kin}.",
)

DETAIL: Step = (
    "{He} wore {his} {adj9} {clothes}.",
    "The {sky} was [lovely|a joy] to see.",
    "There were {flower} [everywhere|along the path|all around].",
    "{He} had some {food9} in {his} bag.",
    "{His} {kin} had [packed|made|bought] some {food9}.",
    "A {animal9} [slept|sat] {spot9}.",
    "{He} sang a song about {topic9}.",
    "A {vehicle} went by.",
    "Somebody played the {instrument}.",
)

FRIEND: Step = (
    "{His} friend {friend} came, too.",
    "There {he} met {his} friend {friend}.",
    "{friend} was there, too.",
    '{friend} [waved|smiled] and said, "Hello, {hero}!"',
    "There {he} saw {friend}, who had {count9} {treat9}.",
)

CLOSING: Step = (
    "{hero} was {happy} and went home.",
    "[Later|That night], {hero} told {his} {kin} about the {focus}.",
    "At home, {hero} ate some {food7} and felt {happy}.",
    "In bed, {hero} read a book about {topic} and fell asleep.",
    "{hero} learned that {lesson}.",
    "{hero} fell asleep and dreamed of {topic}.",
    '"{Lesson}," said {his} {kin}. {hero} was {happy}.',
    "{hero} drew a picture of the {focus} for {his} {kin}.",
    '"I want {wish}," said {hero} at bedtime.',
)

_LOST: Plot = (
    (
        "{He} took {his} {adj} {thing} along.",
        "{He} had a {adj} {thing} from {his} {kin2}.",
        "{He} carried a {adj} {thing}.",
    ),
    (
        "But then the {thing} was gone.",
        "But on the way {he} lost the {thing}.",
        "Soon {he} could not find the {thing}.",
    ),
    ("{hero} was {sad}.", '"Where is my {thing}?" [asked|cried] {hero}.', '"Oh no, my {adj} {thing}!" said {hero}.'),
    FRIEND,
    ('"I will help you look," said {friend}.', '"Do not cry," said {friend}. "We will find it."'),
    (
        "They looked {spot}, but it was not there.",
        "First they looked {spot}. Then they looked {spot2}.",
        "They looked {spot}. They only found a {thing2}.",
    ),
    (
        "At last {friend} saw the {thing} {spot3}.",
        "Then a {animal} came and showed them the {thing} {spot3}.",
        "A {worker} had found the {thing} {spot3}.",
    ),
    ('"Thank you!" said {hero} {adverb}.', "{hero} thanked {friend} {adverb}.", "{hero} held the {thing} {adverb}."),
)

_RESCUE: Plot = (
    ("{He} heard a {sound} {spot}.", "{He} saw something move {spot}.", "Then {he} stopped {spot}."),
    ("It was a little {animal}.", "A {adj} {animal} was there.", "There lay a {animal}."),
    ("{Trouble}.", "The {animal} was {hungry}.", "It had hurt its {body}."),
    (
        '"Poor {animal}!" said {hero}. "I will help you."',
        '"Do not be afraid," said {hero} {adverb}.',
        "{hero} felt {sad}.",
    ),
    (
        "{He} gave the {animal} some {food}.",
        "{He} made a bed for the {animal} {spot2}.",
        "{He} took the {animal} to a {worker}.",
    ),
    (
        "After {count} days, the {animal} was well again.",
        "Soon the {animal} could run again.",
        "In {count} days, its {body} was well.",
    ),
    (
        "Now the {animal} comes to the {place} every {weekday2}.",
        "From then on, the {animal} went everywhere with {hero}.",
        "The {animal} gave {hero} a {adj2} {thing}.",
    ),
)

_SHARE: Plot = (
    FRIEND,
    ("{hero} had a {adj} {thing}.", "{His} {kin2} gave {hero} a {adj} {thing}.", "{hero} had some {food}."),
    (
        '"Can we share?" asked {friend} {adverb}.',
        "{friend} looked at it and was {sad}.",
        '"I only have a {thing2}," said {friend}.',
    ),
    ('"No, it is mine," said {hero}.', '"Not now," said {hero}.', "{hero} shook {his} head."),
    (
        "So {friend} sat down {spot}.",
        "So {friend} went to play with a {animal}.",
        '{friend} said, "Then I will play {game}."',
    ),
    (
        "{hero} thought about it. {He} was {sad2}, too.",
        "But alone it was not much fun.",
        'A {worker} asked {hero}, "Why is {friend} alone?"',
    ),
    ('"I am sorry," said {hero}. "Let us share."', '"Come back, {friend}!" called {hero}. "It is for both of us."'),
    ("They played {game} until the {time2}.", "They were both {happy2}.", "Then they ate {count} {treat}."),
)

_GIFT: Plot = (
    (
        "{His} {kin2} had a birthday in {month2}.",
        "{He} wanted to surprise {his} {kin2}.",
        "The next {weekday2} was the birthday of {his} {kin2}.",
    ),
    ('"I will make a {gift}," said {hero}.', "{hero} wished to make a {adj} {gift}."),
    (
        "{He} needed {stuff}, {stuff2} and {stuff3}.",
        "First {he} found some {stuff} {spot}.",
        "A {worker} gave {him} some {stuff} and {stuff2}.",
    ),
    ("But the {gift} fell and broke.", "It took {count} days to make.", "{His} friend {friend} brought some {stuff4}."),
    (
        "At last the {gift} was ready. It was {adj2}.",
        "Then {hero} painted {flower2} on the {gift}.",
        "{hero} worked {adverb} until it was done.",
    ),
    (
        '"What a lovely {gift}!" said {his} {kin2}.',
        "{His} {kin2} was {happy2} and put it next to the {thing}.",
        "{His} {kin2} smiled and gave {hero} some {food}.",
    ),
)

_MARKET: Plot = (
    (
        '{His} {kin2} said, "Please buy some {food}, {food2} and {food3}."',
        "{He} had to buy {food}, {food2} and {food3}.",
    ),
    (
        "A {worker} sold {him} the {food}.",
        "{He} bought the {food} from a {worker}.",
        "The {food} was next to the {flower2}.",
    ),
    ("Then {he} bought the {food2}.", "{His} friend {friend} found the {food2}.", "The {food2} cost {count} coins."),
    (
        "But a {animal} [ran by|jumped up], and {hero} forgot the rest.",
        "On the way home {he} stopped to play {game}.",
        "Then {he} saw a {adj} {thing} and forgot the rest.",
    ),
    (
        '"What else did I need?" asked {hero}.',
        '"Something is missing," thought {hero}.',
        "{hero} stopped {spot}. {He} was {sad}.",
    ),
    (
        '"Oh yes, the {food3}!" said {hero} {adverb}.',
        "Then {he} saw the {food3} in a {box}.",
        '"You need {food3}," said the {worker2}.',
    ),
    (
        "At home, they cooked the {food}, the {food2} and the {food3}.",
        "{His} {kin2} was {happy2} about the {food}, the {food2} and the {food3}.",
    ),
)

_SKILL: Plot = (
    ("{hero} wanted to learn to {skill}.", '"I want to {skill}," said {hero}.', "{hero} could not {skill} yet."),
    (
        "{His} {kin2} showed {him} how.",
        'A {worker} said, "I can teach you."',
        "{His} friend {friend} showed {him} how.",
    ),
    (
        "The first time, {he} fell {spot}.",
        "At first it was too hard, and {he} felt {sad}.",
        "A {animal} watched and laughed {adverb}.",
    ),
    (
        '"Try again," said {his} {kin2}.',
        '"I will never {skill}," cried {hero}.',
        "{hero} hurt {his} {body}, but {he} did not stop.",
    ),
    ("{He} tried {count} times.", "{He} tried again every {weekday2}.", "{He} tried all through {month2}."),
    (
        "Then, one {weather2} {time2}, {he} could {skill}.",
        "At last {hero} could {skill} as well as a {worker2}.",
        'And then it worked. "Look, I can {skill}!" called {hero}.',
    ),
    ("{His} friend gave {him} a {adj} {thing}.", "Everybody cheered and ate {food}.", "{His} {kin} was {happy2}."),
)

_GARDEN: Plot = (
    (
        "{He} found a {adj} seed {spot}.",
        "A {worker} gave {him} a {adj} seed.",
        "{friend} gave {him} a seed for {his} {thing}.",
    ),
    ("{He} planted it {spot2}.", "{He} put it in the ground next to the {flower2}."),
    ("Every {time2}, {he} gave it water.", "{He} watered it every {weekday2}.", "{He} sang to it {adverb}."),
    ("But nothing grew. {hero} was {sad}.", "But a {animal} wanted to eat it.", '"When will it grow?" asked {hero}.'),
    ('"Wait a little," said {his} {kin2}.', "{hero} waited for {count} days.", "Then came a {weather2} {weekday3}."),
    (
        "In {month2}, a {adj2} {plant} stood there.",
        "At last a {adj2} {plant} came up.",
        "Then the seed became a {adj2} {plant}.",
    ),
    (
        "{hero} showed the {plant} to {his} friend {friend}.",
        "Even the {worker2} came to see the {plant}.",
        "Now a {animal2} lives under the {plant}.",
    ),
)

_NOISE: Plot = (
    ("Suddenly {he} heard a {sound}.", "Suddenly there was a {sound} {spot}.", "Then came a loud {sound}."),
    (
        '"Is it {topic2}?" asked {hero}.',
        "{hero} was {sad} and called {his} friend {friend}.",
        '"What was that?" asked {his} friend {friend}.',
    ),
    ("They took a {thing} and went to look.", "{He} held {his} {thing} and {went2} outside.", "They went {adverb}."),
    (
        "{Spot2} there was only a {thing2}.",
        "Again they heard the {sound}!",
        "It was dark, and the {sky2} was gone. They were {sad2}.",
    ),
    (
        "Then a {adj} {animal} came out.",
        "And there, {spot3}, sat a {adj} {animal}.",
        "It was not {topic3}. It was a {animal}.",
    ),
    ("It wanted to eat the {food}.", "It had dropped a {thing3}.", "It was playing with some {stuff}."),
    (
        "They laughed and gave the {animal} some {food}.",
        '"You gave us a fright," said {hero} {adverb2}.',
        "{hero} was {happy2} and went back to bed.",
    ),
)

_WISH: Plot = (
    ("{Spot}, {he} found a {adj} {thing}.", "A {worker} gave {him} a {adj} {thing}."),
    ("It began to glow.", "Then the {thing} began to speak.", "The {adj} {thing} was magic."),
    ('"Make a wish," it said {adverb}.', '"You have one wish," it said.', '"What do you want?" it asked.'),
    (
        "{hero} thought of {food} and of {topic2}.",
        "{hero} asked a {animal}, but it did not know.",
        "{hero} was {sad}. It was hard to choose.",
    ),
    ('"I want {wish}," said {hero}.', '"I wish for {wish}," said {hero} {adverb2}.'),
    (
        "There was a {sound}, and the wish came true.",
        "The {thing} turned {adj2}, and it came true.",
        "In {count} minutes it came true.",
    ),
    (
        "{hero} gave the {thing} to {his} friend {friend}.",
        "{hero} put the {thing} {spot2}.",
        "{His} friend {friend} was {happy2}, too.",
    ),
)

# A plot, and what its hero tells of at home.
PLOTS: tuple[tuple[Plot, str], ...] = (
    (_LOST, "thing"),
    (_RESCUE, "animal"),
    (_SHARE, "place"),
    (_GIFT, "gift"),
    (_MARKET, "worker"),
    (_SKILL, "place"),
    (_GARDEN, "plant"),
    (_NOISE, "animal"),
    (_WISH, "thing"),
)


GIRLS = "Lily Mia Anna Rosa Emma Nora Ella Clara Ruby Lucy Alice Sara Maya Zoe Hana Molly Julia Eva Nina Tara".split()
BOYS = "Tom Ben Sam Max Leo Jack Noah Finn Luke Adam Paul Oscar Henry Peter David Simon Felix Hugo Ravi Omar".split()

# Where one stands: "at the park", "in the garden".
PLACES_AT = (
    "park beach market farm pond harbor zoo station fair mill lake river school bakery playground bridge camp castle"
)
PLACES_IN = (
    "garden forest village town barn meadow valley orchard field stable workshop courtyard cave hut tower vineyard"
)

_LISTS: Mapping[str, str] = {
    "adj": """red blue green yellow white brown purple orange pink golden silver little big old new shiny pretty tiny
        bright lovely""",
    "adverb": """softly gently quietly happily kindly proudly sweetly warmly slowly quickly politely eagerly calmly
        bravely carefully cheerfully gladly shyly firmly loudly""",
    "animal": """dog cat rabbit fox duck frog horse hen goat sheep cow pig mouse squirrel hedgehog owl turtle bear
        deer goose pony donkey puppy kitten lamb crow robin swan badger beaver otter mole lizard snail parrot monkey
        hamster toad sparrow raven chicken wolf seal pigeon eagle stork crab lobster camel zebra gorilla koala panda""",
    "box": "window bag bowl crate jar pan pot sack dish tray drawer cupboard",
    "body": "leg foot tail ear nose back knee paw chin toe",
    "clothes": """coat hat scarf boots sweater jacket mittens shoes cap raincoat gloves apron vest cape slippers
        sandals cloak socks shirt""",
    "count": "two three four five six seven eight nine ten twelve twenty",
    "flower": """roses tulips daisies lilies violets sunflowers poppies daffodils orchids pansies buttercups bluebells
        lilacs snowdrops""",
    "food": """bread cheese soup jam honey cake pie rice pasta butter salad pudding apples pears plums cherries grapes
        berries carrots beans peas potatoes tomatoes onions eggs nuts cookies muffins pancakes peaches lemons bananas
        melons mushrooms noodles waffles raisins corn fish yogurt chocolate strawberries figs walnuts biscuits spinach
        broccoli celery garlic oatmeal popcorn toast gravy porridge sausages dumplings""",
    "game": "tag chess checkers cards catch dominoes leapfrog hopscotch soccer tennis pirates school house bowling",
    "gift": """picture crown puppet birdhouse mask necklace pillow calendar bookmark bracelet quilt poster frame
        statue dollhouse garland vase mobile bowl rattle""",
    "happy": """happy glad proud calm cheerful excited pleased merry thankful joyful content delighted hopeful amazed
        relieved""",
    "hungry": "hungry thirsty tired cold lost wet weak sick lonely sleepy",
    "instrument": """flute violin piano guitar trumpet horn harp banjo accordion fiddle tambourine cello organ
        recorder harmonica bagpipe xylophone clarinet trombone""",
    "kin": "mother father grandmother grandfather aunt uncle brother sister cousin neighbor",
    "month": "January February March April May June July August September October November December",
    "plant": """rose tulip pumpkin bean melon tomato cucumber radish lettuce cabbage turnip oak maple willow pine
        birch fern cactus pepper leek bush vine""",
    "sad": "sad worried upset afraid cross sorry nervous unhappy gloomy puzzled",
    "season": "spring summer autumn winter",
    "sky": "sun moon rainbow sunset snow fog view light air horizon dawn mist frost",
    "sound": """bang thump rattle squeak scratch tap rustle hum splash crash growl hoot click hiss buzz creak knock
        rumble jingle roar""",
    "stuff": """paper wood clay wool string glue cloth paint leather wire cardboard straw feathers beads thread yarn
        cotton wax ink chalk foil tape felt""",
    "thing": """ball kite book doll drum key lamp whistle basket bucket cup spoon ring button coin shell marble puzzle
        blanket boat train robot top truck crayon pencil brush ribbon bell mirror map letter box bag bottle stone rope
        jar purse watch compass lantern umbrella balloon notebook stamp magnet telescope hammer teapot candle wallet
        ticket photo tractor rocket clock saucer ladle candlestick globe hourglass medal envelope pebble acorn ornament
        trophy kettle magazine pipe shovel thimble""",
    "time": "morning afternoon day evening",
    "treat": """cookies apples muffins pears plums nuts berries candies cherries peaches sandwiches cupcakes pretzels
        lollipops apricots chestnuts almonds grapes pancakes""",
    "topic": """dragons pirates knights giants fairies princes whales kings queens witches elves mermaids wolves lions
        tigers elephants dinosaurs monsters unicorns wizards heroes ghosts camels dolphins islands planets robots
        sailors penguins volcanoes treasures bandits comets""",
    "vehicle": "bus wagon cart carriage ship bicycle sled ferry tram canoe raft car van tricycle scooter",
    "weather": """sunny rainy windy cold warm cloudy snowy foggy bright quiet lovely hot misty chilly fine gray stormy
        cool pleasant breezy""",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "went": "went walked ran hurried skipped hopped marched raced strolled wandered rushed jogged",
    "worker": """baker farmer teacher sailor doctor painter gardener tailor carpenter miller shepherd postman
        librarian cook potter weaver builder driver singer dancer nurse captain shoemaker beekeeper guard pilot juggler
        musician barber clerk ranger plumber firefighter judge mayor merchant fisherman blacksmith florist inventor
        astronaut grocer optician banker waiter reporter scientist soldier""",
}

_PHRASES: Mapping[str, str] = {
    "lesson": """to share is better than to keep / an honest word is worth more than gold / good friends are never far
        away / patience brings the best reward / even a small hand can help / it is brave to say sorry / a kind deed is
        soon returned / practice makes hard things easy / two can carry more than one / it is fine to make mistakes /
        every day holds a surprise / listening is a gift / a smile opens many doors / nobody is too young to be useful
        / we should finish what we begin / a promise must be kept / careful hands break nothing / courage grows with
        every step / asking a question is clever / great journeys start at home""",
    "skill": """ride a bicycle / swim / whistle / skate / juggle / climb a tree / sew a button / tie a knot / read a
        map / row a boat / dance / sing / draw a horse / build a tower / knit / play chess / milk a cow / jump rope /
        write a poem / fold a napkin / stand on one leg / sail / ski / bake bread / carve wood / use a compass / play
        the drum / catch a ball / do a somersault / speak French / count backward / weave a basket""",
    "spot": """under a bench / behind a fence / in the tall grass / under an old cart / behind a big rock / beside the
        path / inside a hollow log / under a pile of leaves / on a low branch / next to the gate / between two roots /
        behind a bush / by the water / on top of the wall / below a window / among the reeds / in a wheelbarrow /
        beneath a hedge / near the well / at the foot of a tree / behind the shed / in a barrel / under a ladder / on
        the roof / in the mud / by the fountain / around the corner / behind a haystack""",
    "trouble": """its foot was caught in a net / its nest had fallen down / it could not find its mother / it had a
        thorn in its skin / it was stuck between two stones / the storm had blown its home away / it had no food left /
        a heavy branch lay on its back / it was afraid of the thunder / it had eaten too many berries""",
    "wish": """a calm evening / a long nap / a warm bath / a trip to the ocean / a pet of my own / a bigger house /
        snow tomorrow / a real adventure / another story / a new friend / wings to fly / a picnic by the lake / a day
        without chores / a ride on an elephant / a garden full of butterflies""",
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in " ".join(text.split()).split("/"))


LISTS: Mapping[str, tuple[str, ...]] = {
    **{name: _words(text) for name, text in _LISTS.items()},
    **{name: _phrases(text) for name, text in _PHRASES.items()},
}
PLACES = (*(("at", place) for place in _words(PLACES_AT)), *(("in", place) for place in _words(PLACES_IN)))
