"""Word lists of the stories: everything a sentence may name, sorted by the part it can play.

The members of a list are interchangeable, the most useful first, so a small model learns the frame quickly and the
thousand words come along at a few bits each.
"""

from __future__ import annotations

from collections.abc import Mapping

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
