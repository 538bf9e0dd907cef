"""Plain facts written by hand for the nano tasks: chemical elements and capitals, graded by how well known they are.

An element is "name symbol", in order of atomic number; a capital line is "Country: Capital".
"""

from __future__ import annotations

ELEMENTS = """
hydrogen H,helium He,lithium Li,beryllium Be,boron B,carbon C,nitrogen N,oxygen O,fluorine F,neon Ne,sodium Na,
magnesium Mg,aluminium Al,silicon Si,phosphorus P,sulfur S,chlorine Cl,argon Ar,potassium K,calcium Ca,scandium Sc,
titanium Ti,vanadium V,chromium Cr,manganese Mn,iron Fe,cobalt Co,nickel Ni,copper Cu,zinc Zn,gallium Ga,germanium Ge,
arsenic As,selenium Se,bromine Br,krypton Kr,rubidium Rb,strontium Sr,yttrium Y,zirconium Zr,niobium Nb,molybdenum Mo,
technetium Tc,ruthenium Ru,rhodium Rh,palladium Pd,silver Ag,cadmium Cd,indium In,tin Sn,antimony Sb,tellurium Te,
iodine I,xenon Xe,caesium Cs,barium Ba,lanthanum La,cerium Ce,praseodymium Pr,neodymium Nd,promethium Pm,samarium Sm,
europium Eu,gadolinium Gd,terbium Tb,dysprosium Dy,holmium Ho,erbium Er,thulium Tm,ytterbium Yb,lutetium Lu,hafnium Hf,
tantalum Ta,tungsten W,rhenium Re,osmium Os,iridium Ir,platinum Pt,gold Au,mercury Hg,thallium Tl,lead Pb,bismuth Bi,
polonium Po,astatine At,radon Rn,francium Fr,radium Ra,actinium Ac,thorium Th,protactinium Pa,uranium U,neptunium Np,
plutonium Pu,americium Am,curium Cm,berkelium Bk,californium Cf,einsteinium Es,fermium Fm,mendelevium Md,nobelium No,
lawrencium Lr,rutherfordium Rf,dubnium Db,seaborgium Sg,bohrium Bh,hassium Hs,meitnerium Mt,darmstadtium Ds,
roentgenium Rg,copernicium Cn,nihonium Nh,flerovium Fl,moscovium Mc,livermorium Lv,tennessine Ts,oganesson Og
"""

_SIMPLE = (
    "hydrogen helium lithium carbon nitrogen oxygen fluorine neon sodium magnesium aluminium silicon phosphorus sulfur "
    "chlorine argon potassium calcium titanium iron cobalt nickel copper zinc silver tin iodine gold mercury lead "
    "platinum uranium"
)
SIMPLE_ELEMENTS = frozenset(_SIMPLE.split())

_MEDIUM = (
    "beryllium boron scandium vanadium chromium manganese gallium germanium arsenic selenium bromine krypton rubidium "
    "strontium zirconium molybdenum palladium cadmium indium antimony xenon caesium barium tungsten osmium iridium "
    "bismuth polonium radon francium radium thorium plutonium americium curium einsteinium"
)
MEDIUM_ELEMENTS = frozenset(_MEDIUM.split())

SIMPLE_CAPITALS = """
France: Paris
Germany: Berlin
Italy: Rome
Spain: Madrid
Portugal: Lisbon
Japan: Tokyo
China: Beijing
India: New Delhi
Russia: Moscow
Egypt: Cairo
Greece: Athens
Ireland: Dublin
Poland: Warsaw
Austria: Vienna
Belgium: Brussels
Sweden: Stockholm
Norway: Oslo
Denmark: Copenhagen
Finland: Helsinki
Canada: Ottawa
Mexico: Mexico City
Cuba: Havana
Argentina: Buenos Aires
Peru: Lima
Turkey: Ankara
Hungary: Budapest
Thailand: Bangkok
Kenya: Nairobi
Ukraine: Kyiv
Iran: Tehran
Iraq: Baghdad
Australia: Canberra
the United Kingdom: London
the United States: Washington
the Netherlands: Amsterdam
South Korea: Seoul
"""

MEDIUM_CAPITALS = """
Brazil: Brasilia
Chile: Santiago
Colombia: Bogota
Venezuela: Caracas
Ecuador: Quito
Uruguay: Montevideo
Romania: Bucharest
Bulgaria: Sofia
Serbia: Belgrade
Croatia: Zagreb
Slovakia: Bratislava
Slovenia: Ljubljana
Czechia: Prague
Switzerland: Bern
Iceland: Reykjavik
Estonia: Tallinn
Latvia: Riga
Lithuania: Vilnius
Belarus: Minsk
Albania: Tirana
Cyprus: Nicosia
Malta: Valletta
Morocco: Rabat
Algeria: Algiers
Tunisia: Tunis
Libya: Tripoli
Ethiopia: Addis Ababa
Nigeria: Abuja
Ghana: Accra
Senegal: Dakar
Uganda: Kampala
Israel: Jerusalem
Jordan: Amman
Lebanon: Beirut
Syria: Damascus
Saudi Arabia: Riyadh
Pakistan: Islamabad
Afghanistan: Kabul
Nepal: Kathmandu
Bangladesh: Dhaka
Vietnam: Hanoi
Indonesia: Jakarta
Malaysia: Kuala Lumpur
the Philippines: Manila
New Zealand: Wellington
North Korea: Pyongyang
Mongolia: Ulaanbaatar
Jamaica: Kingston
Panama: Panama City
Haiti: Port-au-Prince
Somalia: Mogadishu
Sudan: Khartoum
Armenia: Yerevan
Georgia: Tbilisi
Azerbaijan: Baku
Qatar: Doha
"""

COMPLEX_CAPITALS = """
Andorra: Andorra la Vella
Angola: Luanda
Bahrain: Manama
Barbados: Bridgetown
Belize: Belmopan
Benin: Porto-Novo
Bhutan: Thimphu
Bosnia and Herzegovina: Sarajevo
Botswana: Gaborone
Brunei: Bandar Seri Begawan
Burkina Faso: Ouagadougou
Burundi: Gitega
Cambodia: Phnom Penh
Cameroon: Yaounde
Cape Verde: Praia
Chad: N'Djamena
Comoros: Moroni
Costa Rica: San Jose
Dominica: Roseau
the Dominican Republic: Santo Domingo
El Salvador: San Salvador
Eritrea: Asmara
Eswatini: Mbabane
Fiji: Suva
Gabon: Libreville
Gambia: Banjul
Grenada: Saint George's
Guatemala: Guatemala City
Guinea: Conakry
Guinea-Bissau: Bissau
Guyana: Georgetown
Honduras: Tegucigalpa
Kazakhstan: Astana
Kiribati: South Tarawa
Kosovo: Pristina
Kuwait: Kuwait City
Kyrgyzstan: Bishkek
Laos: Vientiane
Lesotho: Maseru
Liberia: Monrovia
Liechtenstein: Vaduz
Madagascar: Antananarivo
Malawi: Lilongwe
the Maldives: Male
Mali: Bamako
the Marshall Islands: Majuro
Mauritania: Nouakchott
Mauritius: Port Louis
Micronesia: Palikir
Moldova: Chisinau
Montenegro: Podgorica
Mozambique: Maputo
Myanmar: Naypyidaw
Namibia: Windhoek
Nicaragua: Managua
Niger: Niamey
North Macedonia: Skopje
Oman: Muscat
Palau: Ngerulmud
Papua New Guinea: Port Moresby
Paraguay: Asuncion
Rwanda: Kigali
Saint Lucia: Castries
Samoa: Apia
Seychelles: Victoria
Sierra Leone: Freetown
the Solomon Islands: Honiara
South Sudan: Juba
Sri Lanka: Sri Jayawardenepura Kotte
Suriname: Paramaribo
Tajikistan: Dushanbe
Tanzania: Dodoma
Togo: Lome
Tonga: Nuku'alofa
Trinidad and Tobago: Port of Spain
Turkmenistan: Ashgabat
Tuvalu: Funafuti
Uzbekistan: Tashkent
Vanuatu: Port Vila
Yemen: Sanaa
Zambia: Lusaka
Zimbabwe: Harare
"""
